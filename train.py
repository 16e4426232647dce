"""Train: `python train.py model=ln_ticks trainer.devices=4`. `--help` lists the choices; README.md explains them."""

from pathlib import Path

from ticks.signals import leave_on_signals

if __name__ == "__main__":
    leave_on_signals()  # before the imports that take time
    from ticks.train import main

    main(Path(__file__).parent / "configs")
