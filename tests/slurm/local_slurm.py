"""A real Slurm on this machine: munge, controller and two virtual nodes on loopback, in a folder of its own.

    with LocalSlurm(folder, nodes=2, cpus=2) as cluster:      # SLURM_CONF is set inside
        job = cluster.submit("script.sh")
        cluster.wait(job, "COMPLETED")

Two nodes, n1 and n2 (their names do not resolve), partitions `main` and `high`, which preempts it by requeueing. Needs
slurmctld, slurmd, slurm-client and munge (Debian's names); root or not. A requeued job starts again after about 10 s.
"""

import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

SBIN = ("/usr/sbin", "/usr/local/sbin", "/sbin")
MISSING = "needs slurmctld, slurmd, slurm-client and munge"


def program(name):
    return shutil.which(name, path=os.pathsep.join([os.environ["PATH"], *SBIN]))


def installed():
    return all(program(name) for name in ("munged", "slurmctld", "slurmd", "sbatch", "srun"))


def free_ports(count):
    """A row of ports nobody listens on now."""
    for first in range(20000 + secrets.randbelow(200) * 50, 60000, 50):
        with contextlib.ExitStack() as stack:
            try:
                for port in range(first, first + count):
                    held = stack.enter_context(socket.socket())
                    held.bind(("127.0.0.1", port))
            except OSError:
                continue
        return first
    raise RuntimeError("no free ports")


class LocalSlurm:
    def __init__(self, folder, nodes=2, cpus=2, gpus=0):
        self.folder, self.cpus, self.gpus = Path(folder), cpus, gpus
        self.nodes = [f"n{number}" for number in range(1, nodes + 1)]
        self.daemons = {}

    def __enter__(self):
        try:
            self._start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_):
        self.stop()

    # Jobs.

    def run(self, *command, check=True):
        done = subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=60)
        if check and done.returncode:
            raise RuntimeError(f"{command}: {done.stderr or done.stdout}")
        return done.stdout

    def submit(self, *arguments):
        """sbatch; the job's id."""
        return self.run("sbatch", "--parsable", *arguments).strip()

    def state(self, job):
        text = self.run("scontrol", "-o", "show", "job", job, check=False)
        return text.partition("JobState=")[2].partition(" ")[0]

    def field(self, job, name):
        text = self.run("scontrol", "-o", "show", "job", job)
        return text.partition(f" {name}=")[2].partition(" ")[0]

    def wait(self, job, *states, seconds=120):
        """Until the job is in one of these states; which one."""
        deadline = time.monotonic() + seconds
        while (now := self.state(job)) not in states:
            if time.monotonic() > deadline:
                raise TimeoutError(f"job {job} is {now} after {seconds} s, not {' or '.join(states)}")
            time.sleep(0.2)
        return now

    # Nodes.

    def kill_node_daemon(self, node):
        """As a node that is lost to the controller; what it ran lives on."""
        self.daemons.pop(node).kill()

    def start_node_daemon(self, node):
        self._spawn(node, "slurmd", "-D", "-N", node, "-f", self.conf)
        self._wait_for_nodes()

    # The daemons.

    def _spawn(self, name, *command):
        output = open(self.folder / "log" / f"{name}.out", "ab")  # noqa: SIM115
        arguments = [program(command[0]), *map(str, command[1:])]
        self.daemons[name] = subprocess.Popen(
            arguments, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
        )
        output.close()

    def _start(self):
        folder = self.folder
        for part in ("munge", "state", "log", *(f"spool.{node}" for node in self.nodes)):
            (folder / part).mkdir(parents=True, exist_ok=True)
        folder.chmod(0o755)
        (folder / "munge").chmod(0o700)
        key = folder / "munge" / "key"
        key.touch(mode=0o600)
        key.write_bytes(secrets.token_bytes(128))
        (folder / "munge").chmod(0o755)  # clients must reach the socket
        files = {"socket": "munge/sock", "key-file": "munge/key", "pid-file": "munge/pid", "seed-file": "munge/seed"}
        options = [f"--{name}={folder / file}" for name, file in (files | {"log-file": "log/munged.log"}).items()]
        self._spawn("munged", "munged", "--foreground", "--force", "--num-threads=2", *options)
        munge = ("munge", "-S", folder / "munge" / "sock", "-n")
        self._until(lambda: self.run(*munge, check=False), "munged")
        self.conf = folder / "slurm.conf"
        self._write_config(free_ports(len(self.nodes) + 1))
        self._former = os.environ.get("SLURM_CONF")
        os.environ["SLURM_CONF"] = str(self.conf)
        self._spawn("slurmctld", "slurmctld", "-D", "-f", self.conf)
        for node in self.nodes:
            self._spawn(node, "slurmd", "-D", "-N", node, "-f", self.conf)
        self._wait_for_nodes()

    def _wait_for_nodes(self):
        wanted = {node for node in self.nodes if node in self.daemons}
        self._until(lambda: wanted <= set(self.run("sinfo", "-hNt", "idle,mix,alloc", "-o", "%N", check=False).split()))

    def _until(self, condition, what="the nodes", seconds=60):
        deadline = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > deadline:
                logs = "\n".join(path.read_text()[-800:] for path in (self.folder / "log").glob("*"))
                raise TimeoutError(f"{what} did not come up:\n{logs}")
            time.sleep(0.1)

    def _write_config(self, port):
        folder, host = self.folder, socket.gethostname().partition(".")[0]
        user = self.run("id", "-un").strip()
        lines = [
            "ClusterName=local",
            f"SlurmctldHost={host}(127.0.0.1)",
            f"SlurmUser={user}",
            f"SlurmdUser={user}",
            f"SlurmctldPort={port}",
            "AuthType=auth/munge",
            f"AuthInfo=socket={folder}/munge/sock,cred_expire=5",  # a requeued job waits so long, and twice that
            "CredType=cred/munge",
            f"StateSaveLocation={folder}/state",
            f"SlurmdSpoolDir={folder}/spool.%n",
            f"SlurmctldPidFile={folder}/slurmctld.pid",
            f"SlurmdPidFile={folder}/slurmd.%n.pid",
            f"SlurmctldLogFile={folder}/log/slurmctld.log",
            f"SlurmdLogFile={folder}/log/slurmd.%n.log",
            "ProctrackType=proctrack/linuxproc",
            "TaskPlugin=task/none",
            "JobAcctGatherType=jobacct_gather/none",
            "AccountingStorageType=accounting_storage/none",
            "JobCompType=jobcomp/none",
            "MpiDefault=none",
            "SwitchType=switch/none",
            "SelectType=select/cons_tres",
            "SelectTypeParameters=CR_Core",
            "SchedulerType=sched/backfill",
            "SchedulerParameters=batch_sched_delay=0,sched_interval=5,bf_interval=1,defer_batch=0",
            "PreemptType=preempt/partition_prio",
            "PreemptMode=REQUEUE",
            "JobRequeue=1",
            "KillWait=10",
            "MinJobAge=3600",
            "CompleteWait=0",
            "InactiveLimit=0",
            "ReturnToService=2",
            "SlurmctldTimeout=30",
            "SlurmdTimeout=20",  # a silent node is down after it, and its jobs are requeued
            "MessageTimeout=10",
            "SlurmdParameters=config_overrides",
        ]
        if self.gpus:
            lines.append("GresTypes=gpu")
            self._write_fake_gpus()
        for number, node in enumerate(self.nodes, 1):
            sockets = f"CPUs={self.cpus} Boards=1 SocketsPerBoard=1 CoresPerSocket={self.cpus} ThreadsPerCore=1"
            gres = f" Gres=gpu:{self.gpus}" if self.gpus else ""
            address = f"NodeHostname={host} NodeAddr=127.0.0.1 Port={port + number}"
            lines.append(f"NodeName={node} {address} {sockets} RealMemory=4096 State=UNKNOWN{gres}")
        common = "Nodes=ALL MaxTime=INFINITE DefaultTime=10 State=UP"
        lines.append(f"PartitionName=main {common} Default=YES PriorityTier=1 PreemptMode=REQUEUE")
        lines.append(f"PartitionName=high {common} PriorityTier=10 PreemptMode=OFF")
        self.conf.write_text("\n".join(lines) + "\n")
        (folder / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\nCgroupAutomount=no\n")

    def _write_fake_gpus(self):
        """Devices that are not what they say, so that jobs may ask for some."""
        devices = [f"/dev/tty{number}" for number in range(self.gpus)]
        if os.geteuid() == 0:
            (self.folder / "dev").mkdir(exist_ok=True)
            devices = [str(self.folder / "dev" / f"gpu{number}") for number in range(self.gpus)]
            for device in devices:
                if not os.path.exists(device):
                    os.mknod(device, 0o020666, os.makedev(1, 3))
        lines = [f"NodeName={node} Name=gpu File={','.join(devices)}" for node in self.nodes]
        (self.folder / "gres.conf").write_text("\n".join(["AutoDetect=off", *lines]) + "\n")

    def stop(self):
        if "slurmctld" in self.daemons:
            with contextlib.suppress(Exception):
                self.run("scancel", "--signal=KILL", "-u", self.run("id", "-un").strip(), check=False)
                self._until(lambda: not self.run("squeue", "-h", check=False).strip(), "an empty queue", 30)
        for name in [name for name in self.daemons if name != "munged"] + ["munged"]:
            daemon = self.daemons.pop(name, None)
            if daemon is None:
                continue
            daemon.send_signal(signal.SIGTERM)
            try:
                daemon.wait(10)
            except subprocess.TimeoutExpired:
                daemon.kill()
        if getattr(self, "_former", None) is not None:
            os.environ["SLURM_CONF"] = self._former
        else:
            os.environ.pop("SLURM_CONF", None)


if __name__ == "__main__":  # a cluster to try things on: python tests/slurm/local_slurm.py FOLDER [GPUS]
    with LocalSlurm(sys.argv[1], gpus=int(sys.argv[2]) if len(sys.argv) > 2 else 0) as cluster:
        print(f"export SLURM_CONF={cluster.conf}", flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            signal.pause()
