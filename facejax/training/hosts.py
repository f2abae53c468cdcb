"""Several hosts as one machine, by `jax.distributed`."""

import jax

from facejax.geometry.errors import InputError


def join_hosts(coordinator: str | None = None, hosts: int = 1, host: int = 0) -> None:
    """Joins the other processes of a run; call it before anything else of JAX, once in every process.

    On TPU pods, Slurm and their like nothing needs to be told: JAX finds the others. Elsewhere `coordinator` is
    "host:port" of process 0, `hosts` the number of processes and `host` the number of this one. Raises `InputError`
    when they cannot be found.
    """
    if coordinator is not None and not 0 <= host < hosts:
        raise InputError(f"--host counts from 0 up to --hosts, so {host} of {hosts} cannot be.")
    try:
        if coordinator is None:
            jax.distributed.initialize()
        else:
            jax.distributed.initialize(coordinator, hosts, host)
    except (RuntimeError, ValueError) as error:
        raise InputError(
            f"The other hosts cannot be joined ({str(error).splitlines()[0]}): give --coordinator HOST:PORT, "
            "--hosts and --host where JAX cannot find them by itself."
        ) from error
