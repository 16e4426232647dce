"""The same small model and data with `Trainer(strategy="ddp")`: what Lightning does with the same faults.

`python plain_lightning.py WORKERS [resume]` writes checkpoints every 40 steps to logs/runs/lightning/checkpoints;
`resume` continues from the newest.
"""

import sys
import warnings
from functools import partial
from pathlib import Path


def main() -> None:
    workers = int(sys.argv[1])
    directory = Path("logs/runs/lightning/checkpoints")
    warnings.filterwarnings("ignore")
    from lightning.pytorch import Trainer, seed_everything
    from lightning.pytorch.callbacks import ModelCheckpoint

    from ticks.data import BBCNews
    from ticks.models import DecoderTransformer, LayerNorm
    from ticks.optim import WarmupCosine, adamw
    from ticks.tasks import LanguageModeling

    seed_everything(0, workers=True, verbose=False)
    data = BBCNews(block_size=32, global_batch_size=6, eval_batch_size=64)
    model = DecoderTransformer(
        vocab_size=256, block_size=32, d_model=32, n_layers=1, n_heads=2, dropout=0.1, norm=LayerNorm, position="rotary"
    )
    how = {"optimizer": partial(adamw, lr=5e-3), "schedule": WarmupCosine(warmup_steps=2, min_ratio=0.1)}
    task = LanguageModeling(model, **how)
    saver = ModelCheckpoint(
        directory, filename="{step}", monitor="step", mode="max", save_top_k=2, every_n_train_steps=40
    )
    trainer = Trainer(
        strategy="ddp", accelerator="cpu", devices=workers, max_steps=160, max_epochs=-1, val_check_interval=40,
        check_val_every_n_epoch=None, limit_val_batches=1, num_sanity_val_steps=0, use_distributed_sampler=False,
        callbacks=[saver], logger=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    newest = sorted(directory.glob("*.ckpt"), key=lambda file: file.stat().st_mtime_ns)[-1:]
    resume = str(newest[0]) if newest and "resume" in sys.argv else None
    if trainer.is_global_zero:
        print(f"resuming from {resume}", flush=True)
    trainer.fit(task, datamodule=data, ckpt_path=resume)
    trainer.save_checkpoint(directory / "final.ckpt")
    if trainer.is_global_zero:
        print("last lines", flush=True)


if __name__ == "__main__":
    main()
