"""LightningModules: what is learnt, and how it is measured."""

from ticks.tasks.base import Task
from ticks.tasks.classification import Classification
from ticks.tasks.language_modeling import LanguageModeling
from ticks.tasks.predictive_coding import PredictiveCoding
from ticks.tasks.sequence_to_sequence import SequenceToSequence, Transcription

__all__ = ["Classification", "LanguageModeling", "PredictiveCoding", "SequenceToSequence", "Task", "Transcription"]
