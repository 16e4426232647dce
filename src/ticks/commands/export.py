"""Usage: ticks export run=RUN_DIR format=FORMAT [out=PLACE]

Write the model of a run's newest checkpoint for use elsewhere, and check
that what was written computes the same.

  run=RUN_DIR      the run's directory (required)
  format=FORMAT    merged   the base's own format, ticks and norms made part
                            of it (a folder for from_pretrained); of any other
                            tuning of such a base, too
                   adapter  the ticks and norms alone (safetensors), for
                            load_adapter on the same base; the head beside it
                   onnx     for onnxruntime, batch and length free
                   torch    a torch.export program (.pt2), the same freedom
                   int8     dynamically quantised linear maps (.pt); says
                            what that costs on the validation data
  out=PLACE        where to (default: RUN_DIR/export/FORMAT...)

Example: ticks export run=logs/runs/RUN format=onnx
"""

from pathlib import Path

from ticks.commands.options import run_of, split, where_it_began
from ticks.config import ConfigError, did_you_mean

FORMATS = ("merged", "adapter", "onnx", "torch", "int8")


def main(arguments: list[str]) -> None:
    options, rest = split(arguments, run=None, format=None, out=None)
    if rest:
        raise ConfigError(f"unknown option '{rest[0]}'{did_you_mean(rest[0].partition('=')[0], options)}")
    run_dir, kind = run_of(options["run"]), options["format"]
    if kind not in FORMATS:
        raise ConfigError(f"format={kind or ''} must be one of {', '.join(FORMATS)}")
    out = Path(options["out"]).expanduser().resolve() if options["out"] else run_dir.resolve() / "export"
    if options["out"] and (out.is_file() if kind == "merged" else out.is_dir()):
        wanted, there = ("folder", "file") if kind == "merged" else ("file", "folder")
        raise ConfigError(f"out={options['out']} is a {there}; format={kind} writes a {wanted}")

    from ticks.assemble import restored
    from ticks.export import CannotExport, export
    from ticks.job import resumed_job

    directory = run_dir.resolve()
    with where_it_began(run_dir):
        made = restored(resumed_job(directory, [], mode="eval"))
        try:
            for line in export(made.task, made.data, kind, out, named=bool(options["out"])):
                print(line)
        except CannotExport as error:
            raise ConfigError(f"format={kind}: {error}") from None
