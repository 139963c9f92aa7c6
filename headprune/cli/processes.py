"""What a command that is one process's work says to a launcher."""

from headprune.errors import ConfigError


def refuse_several_processes(name: str) -> None:
    """Refuse a launcher's processes where each would do, and write, the same.

    Raises:
        ConfigError: There are several, or a launcher's variable is no number.
    """
    from headprune.runtime.distributed import launched_size  # imports torch

    if (size := launched_size()) > 1:
        raise ConfigError(
            f"{name} runs in one process, and a launcher started {size}",
            where="torchrun, accelerate launch",
            hint=f"score on several: torchrun -m headprune -- score ...; then headprune {name} --scores FILE",
        )
