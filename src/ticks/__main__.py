"""The `ticks` command's door: signals first, then what takes time to import."""

from ticks.signals import leave_on_signals


def main() -> None:
    leave_on_signals()
    from ticks.commands import main as command

    command()


if __name__ == "__main__":
    main()
