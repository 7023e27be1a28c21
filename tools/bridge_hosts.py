"""Hosts for tools/bridge_kills.py: where we may, namespaces with a /dev/shm, IPC and a network of their own."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import psutil

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from support import bus_processes


class Host:
    """One bus and what runs for it: what does, sees its own /dev/shm and network. Others than root get a bus alone."""

    def __init__(self, number: int, bus: str, netted: bool) -> None:
        self.bus = bus
        self.gateway, self.holder = "127.0.0.1", None
        self.enter: list[str] = []
        self.shm = Path("/dev/shm")
        if os.geteuid() != 0:
            return
        kinds = ["-m", "-i", "-u", *(["-n"] if netted else [])]
        script = "mount -t tmpfs tmpfs /dev/shm && echo ready && exec sleep infinity"
        words = ["unshare", *kinds, "--propagation", "private", "sh", "-c", script]
        self.holder = subprocess.Popen(words, stdout=subprocess.PIPE)
        assert self.holder.stdout is not None
        if self.holder.stdout.readline() != b"ready\n":
            raise AssertionError("no namespaces")
        self.shm = Path("/proc", str(self.holder.pid), "root", "dev", "shm")
        self.enter = ["nsenter", "-t", str(self.holder.pid), *kinds, "--"]
        if netted:
            name, net = f"bk{os.getpid() % 100000}{number}", f"10.213.{os.getpid() % 250}.{4 * number}"
            self.gateway, inside = (net.rpartition(".")[0] + f".{4 * number + last}" for last in (1, 2))
            command("ip", "link", "add", name, "type", "veth", "peer", "name", "eth0", "netns", str(self.holder.pid))
            command("ip", "addr", "add", f"{self.gateway}/30", "dev", name)
            command("ip", "link", "set", name, "up")
            command(*self.enter, "ip", "addr", "add", f"{inside}/30", "dev", "eth0")
            for device in ("lo", "eth0"):
                command(*self.enter, "ip", "link", "set", device, "up")

    def life(self) -> int:
        """Which bus it is, of those that had this name one after another; 0: there is none now."""
        try:
            return (self.shm / f"shmbus-{self.bus}:{os.geteuid()}").stat().st_ino
        except FileNotFoundError:
            return 0

    def owed(self) -> int:
        """Events that the groups of the bus have still to get."""
        words = [*self.enter, sys.executable, "-m", "shmbus", "stat", self.bus, "--json"]
        found = subprocess.run(words, check=True, capture_output=True).stdout
        return sum(consumer["depth"] for consumer in json.loads(found)["consumers"])

    def gone(self) -> bool:
        """Nothing is left of the bus, neither a name in /dev/shm nor a process."""
        return not any(self.bus in name for name in os.listdir(self.shm)) and not self._processes()

    def supervisors(self) -> list[psutil.Process]:
        """Those in office, and those that are to be."""
        return [process for process in bus_processes(self.bus) if _supervises(process)]

    def _processes(self) -> list[psutil.Process]:
        found = list(bus_processes(self.bus))
        if self.holder is None:
            return found
        known, own = {process.pid for process in found}, os.readlink(f"/proc/{self.holder.pid}/ns/mnt")
        for process in psutil.process_iter():
            with suppress(OSError):
                if process.pid not in known and os.readlink(f"/proc/{process.pid}/ns/mnt") == own:
                    found.append(process)
        return [process for process in found if process.pid != self.holder.pid]

    def kill(self, chance: random.Random, *, supervisors: bool) -> None:
        """Kill all that runs at once, until nothing does: its supervisors first, or all but those."""
        while True:
            found = {process: _supervises(process) for process in bus_processes(self.bus)}
            victims = [process for process, supervises in found.items() if supervisors or not supervises]
            if not victims:
                return
            chance.shuffle(victims)
            victims.sort(key=lambda process: not found[process])
            for process in victims:
                with suppress(psutil.NoSuchProcess):
                    process.kill()

    def close(self) -> None:
        if self.holder is not None:
            self.holder.kill()
            self.holder.wait()


def _supervises(process: psutil.Process) -> bool:
    try:
        return any("shmbus.supervisor" in word for word in process.cmdline())
    except psutil.Error:
        return False


def command(*words: str) -> None:
    subprocess.run(words, check=True)
