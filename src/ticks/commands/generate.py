"""Usage: ticks generate run=RUN_DIR [OPTION=VALUE ...]

Continue a text with the model of a run's newest checkpoint.

  run=RUN_DIR       the run's directory (required)
  prompt=TEXT       what to continue (default: the run's sample_prompt)
  bytes=N           how many bytes to generate, about as many if tokens are
                    longer (default: 400)
  temperature=T     0 always takes the likeliest token, 1 samples from the
                    model's distribution (default: 0.8)
  seed=N            of the sampling (default: 0)

Example: ticks generate run=logs/runs/RUN prompt="Mr "
"""

from typing import Any

from ticks.commands.options import number, run_of, split, where_it_began
from ticks.config import ConfigError, did_you_mean


def main(arguments: list[str]) -> None:
    options, rest = split(arguments, run=None, prompt=None, bytes="400", temperature="0.8", seed="0")
    if rest:
        raise ConfigError(f"unknown option '{rest[0]}'{did_you_mean(rest[0].partition('=')[0], options)}")
    n, seed = int(number("bytes", options["bytes"], int)), int(number("seed", options["seed"], int))
    temperature = number("temperature", options["temperature"], float)

    from ticks.assemble import restored
    from ticks.job import resumed_job
    from ticks.tasks.language_modeling import tokens_for

    run_dir = run_of(options["run"])
    directory = run_dir.resolve()
    with where_it_began(run_dir):
        made = restored(resumed_job(directory, [], mode="eval"))
        data: Any = made.data
        task: Any = made.task
        if not hasattr(task, "generate") or not hasattr(data, "encode"):
            raise ConfigError(f"run={options['run']}: {type(task).__name__} on {type(data).__name__} writes no text")
    prompt = data.encode((task.sample_prompt if options["prompt"] is None else options["prompt"]) or "\n")
    print(data.decode(task.generate(prompt, tokens_for(n, data), temperature=temperature, seed=seed)))
