"""a Ray cluster of several nodes on loopback, each of which can go at once and without a word, as a machine
would
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import psutil

os.environ |= {
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # 127.0.0.1 stays what it is; read when ray is imported
    "RAY_USAGE_STATS_ENABLED": "0",
    # a node leaves so long after its head has gone; a minute by default
    "RAY_gcs_rpc_server_reconnect_timeout_s": "5",
}


def listening(processes: Iterable[psutil.Process]) -> set[str]:
    """Addresses that they listen at."""
    found = set()
    for process in processes:
        with contextlib.suppress(psutil.Error):
            found |= {
                connection.laddr.ip
                for connection in process.net_connections()
                if connection.status == psutil.CONN_LISTEN
            }
    return found


class Nodes:
    """Logical nodes, whatever the machine has. ``address`` is the head's, also after it has been
    restarted.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        # The cluster utility notes its address in the default folder of temporary files, which on a new
        # machine nobody has made.
        (folder / "ray").mkdir()
        self._outer_temporary = os.environ.get("RAY_TMPDIR")
        os.environ["RAY_TMPDIR"] = str(folder)
        self.nodes: dict[str, Any] = {}
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.address = f"127.0.0.1:{free.getsockname()[1]}"

    def start(self, name: str, cores: int = 1) -> None:
        """``head``, or any other name for a node that joins it."""
        from ray.cluster_utils import Cluster

        given = {
            "num_cpus": cores,
            "node_ip_address": "127.0.0.1",
            "include_dashboard": False,
            "object_store_memory": 80_000_000,
        }
        if name == "head":
            head = {**given, "gcs_server_port": int(self.address.split(":")[1]), "temp_dir": str(self.folder)}
            self.cluster = Cluster(initialize_head=True, head_node_args=head)
            self.nodes[name] = self.cluster.head_node
        else:
            self.nodes[name] = self.cluster.add_node(wait=False, **given)

    def kill(self, name: str) -> None:
        """All of the node's processes at once."""
        node = self.nodes.pop(name)
        for process in self.processes(node):
            with contextlib.suppress(psutil.Error):
                os.kill(process.pid, signal.SIGKILL)
        node.kill_all_processes(check_alive=False, allow_graceful=False, wait=True)

    def processes(self, node: Any) -> list[psutil.Process]:
        found = []
        for infos in node.all_processes.values():
            for info in infos:
                with contextlib.suppress(psutil.Error):
                    process = psutil.Process(info.process.pid)
                    found += [process, *process.children(recursive=True)]
        return found

    def listening(self) -> set[str]:
        """Addresses that the nodes' processes listen at."""
        return listening(process for node in self.nodes.values() for process in self.processes(node))

    def close(self) -> None:
        for name in reversed(list(self.nodes)):
            self.kill(name)
        os.environ.pop("RAY_TMPDIR")
        if self._outer_temporary is not None:
            os.environ["RAY_TMPDIR"] = self._outer_temporary
