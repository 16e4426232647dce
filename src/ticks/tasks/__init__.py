"""LightningModules: what is learnt, how it is measured, and with which optimizer."""

from ticks.tasks.language_modeling import LanguageModeling

__all__ = ["LanguageModeling"]
