"""How the ranks of a Slurm step find each other, and who starts the ranks elsewhere.

    fabric = open_fabric(accelerator, strategy, devices, num_nodes)

`srun python train.py trainer.num_nodes=2 trainer.devices=8` with one task a GPU: the tasks of the step are the ranks.
A process that is no task of several (a plain `python`, in a job or not, in `salloc`, in `srun --pty bash`) starts its
own, as anywhere; torchrun's are its own affair. Lightning's environment for Slurm is not used: it takes a job for a
step, wants --ntasks-per-node, believes that node names resolve, and gives a requeued job the port that ranks of its
former incarnation may still listen on.
"""

import os
import socket
import zlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from lvm.runtime.errors import UserError
from lvm.runtime.slurm import fields, slurm

if TYPE_CHECKING:
    from lightning.fabric import Fabric
    from lightning.fabric.plugins.environments import ClusterEnvironment

PORTS = range(10_000, 32_000)  # below those that systems hand out to connections


def open_fabric(accelerator: str, strategy: str, devices: int | str, num_nodes: int) -> "Fabric":
    """Fabric as it launches or joins the ranks. Raises `UserError` where it cannot have such devices here."""
    from lightning.fabric import Fabric
    from lightning.fabric.utilities.exceptions import MisconfigurationException

    plugins = cluster_environment(devices, num_nodes)
    try:
        return Fabric(accelerator=accelerator, strategy=strategy, devices=devices, num_nodes=num_nodes, plugins=plugins)
    except (MisconfigurationException, RuntimeError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"accelerator={accelerator} devices={devices} num_nodes={num_nodes}: {reason}; use accelerator=auto, and "
            "as many devices and nodes as there are"
        ) from None


def cluster_environment(devices: int | str, num_nodes: int) -> list[Any]:
    """Fabric's plugins for this process: none under torchrun, which Fabric finds by itself.

    Raises `UserError` where srun has started another number of tasks, or several nodes are asked for and nobody has
    started a rank on each.
    """
    from lightning.fabric.plugins.environments import LightningEnvironment, TorchElasticEnvironment

    if TorchElasticEnvironment.detect():
        return []
    if num_tasks() > 1:
        refuse_other_number(devices, num_nodes)
        address, port = master_address(), master_port()
        os.environ |= {"MASTER_ADDR": address, "MASTER_PORT": str(port), "LOCAL_WORLD_SIZE": str(tasks_here())}
        return [_slurm_step(address, port)]
    if num_nodes > 1 and not {"NODE_RANK", "GROUP_RANK"} & set(os.environ):
        raise UserError(
            f"trainer.num_nodes is {num_nodes} and this process is alone; start one a device, on every node: "
            f"srun --nodes={num_nodes} --ntasks-per-node={devices} python train.py ..."
        )
    return [LightningEnvironment()]


def refuse_other_number(devices: int | str, num_nodes: int) -> None:
    if isinstance(devices, int) and num_tasks() != devices * num_nodes:
        raise UserError(
            f"srun started {num_tasks()} tasks, and trainer.num_nodes={num_nodes} x trainer.devices={devices} are "
            f"{num_nodes * devices}; give srun --nodes={num_nodes} --ntasks-per-node={devices}"
        )


def first_process() -> bool:
    """Whether this becomes rank 0, as far as one can tell before ranks are launched."""
    return not any(int(os.environ.get(key) or 0) for key in ("RANK", "SLURM_PROCID", "LOCAL_RANK"))


def num_tasks() -> int:
    """Tasks of the Slurm step that this process is one of; 1 outside one."""
    return int(os.environ.get("SLURM_STEP_NUM_TASKS") or 1) if "SLURM_PROCID" in os.environ else 1


def tasks_here() -> int:
    """Tasks of the step on this node: "2(x3),1" is 2, 2, 2, 1."""
    counts: list[int] = []
    for part in os.environ["SLURM_STEP_TASKS_PER_NODE"].split(","):
        number, _, times = part.partition("(x")
        counts += [int(number)] * int(times.rstrip(")") or 1)
    return counts[int(os.environ["SLURM_NODEID"])]


def master_port(environment: Mapping[str, str] = os.environ) -> int:
    """$MASTER_PORT, or one that follows from the job, its step and how often it was restarted."""
    if environment.get("MASTER_PORT"):
        return int(environment["MASTER_PORT"])
    name = ".".join(environment.get(f"SLURM_{key}") or "0" for key in ("JOB_ID", "STEP_ID", "RESTART_COUNT"))
    return PORTS[zlib.crc32(name.encode()) % len(PORTS)]


def master_address() -> str:
    """Where rank 0 is reached: $MASTER_ADDR; the step's first node by its name if that resolves, by the address that
    Slurm has for it, or by that of the host that runs srun, which in a batch job is the first node.

    Raises `UserError` if none is known.
    """
    if given := os.environ.get("MASTER_ADDR"):
        return given
    nodes = os.environ.get("SLURM_STEP_NODELIST") or os.environ["SLURM_JOB_NODELIST"]
    node = first_node(nodes)
    if resolves(node):
        return node
    for address in (node_address(node), os.environ.get("SLURM_LAUNCH_NODE_IPADDR")):
        if address and resolves(address):
            return address
    raise UserError(f"the name of node {node} does not resolve and Slurm has no address for it; set MASTER_ADDR")


def first_node(nodes: str) -> str:
    """Of a list as Slurm writes it: gpu[07-09,12],login1 -> gpu07."""
    before, bracket, rest = nodes.partition("[")
    if not bracket or "," in before:
        return before.partition(",")[0]
    first, _, after = rest.partition("]")
    return before + first.partition(",")[0].partition("-")[0] + after.partition(",")[0]


def node_address(node: str) -> str | None:
    """NodeAddr; None where `scontrol` cannot be asked, as in many containers."""
    try:
        return fields(slurm("scontrol", "--oneliner", "show", "node", node)).get("NodeAddr")
    except UserError:
        return None


def resolves(name: str) -> bool:
    try:
        return bool(socket.getaddrinfo(name, None))
    except OSError:
        return False


def _slurm_step(address: str, port: int) -> "ClusterEnvironment":
    from lightning.fabric.plugins.environments import ClusterEnvironment

    def number(key: str) -> int:
        return int(os.environ[f"SLURM_{key}"])

    class SlurmStep(ClusterEnvironment):
        """The tasks of a step are the ranks."""

        creates_processes_externally = True  # type: ignore[assignment]
        main_address = address  # type: ignore[assignment]
        main_port = port  # type: ignore[assignment]

        @staticmethod
        def detect() -> bool:
            return num_tasks() > 1

        def world_size(self) -> int:
            return num_tasks()

        def global_rank(self) -> int:
            return number("PROCID")

        def local_rank(self) -> int:
            return number("LOCALID")

        def node_rank(self) -> int:
            return number("NODEID")

        def set_world_size(self, size: int) -> None:
            """It is Slurm's."""

        def set_global_rank(self, rank: int) -> None:
            """It is Slurm's."""

    return SlurmStep()
