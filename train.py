"""Train: `python train.py model=ln_ticks trainer.devices=4`. `--help` lists the choices; README.md explains them."""

from pathlib import Path

from ticks.train import main

if __name__ == "__main__":
    main(Path(__file__).parent / "configs")
