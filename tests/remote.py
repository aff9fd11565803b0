"""A real S3 server on this machine, for tests that write to one."""

import os
import shutil
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def s3_server(log, **settings):
    """A moto server, with these variables set for it; yields the environment that leads to it."""
    command = shutil.which("moto_server", path=str(Path(sys.executable).parent)) or "moto_server"
    port = free_port()
    with open(log, "wb") as out:
        server = subprocess.Popen(
            [command, "-H", "127.0.0.1", "-p", str(port)],
            stdout=out,
            stderr=out,
            env={**os.environ, **settings},
        )
        try:
            _wait(server, port, log)
            yield {
                "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
                "AWS_ACCESS_KEY_ID": "testing",
                "AWS_SECRET_ACCESS_KEY": "testing",
                "AWS_DEFAULT_REGION": "us-east-1",
                "AWS_EC2_METADATA_DISABLED": "true",
            }
        finally:
            server.terminate()
            server.wait(30)


def _wait(server, port, log):
    for _ in range(600):
        if server.poll() is not None:
            break
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        except OSError:
            time.sleep(0.1)
    raise RuntimeError(f"moto_server did not start: {Path(log).read_text()[-500:]}")


@contextmanager
def environment(values):
    """These variables set (None: unset), and no fsspec file system kept from before or for after."""
    import fsspec

    before = {name: os.environ.get(name) for name in values}
    try:
        _set(values)
        fsspec.get_filesystem_class("s3").clear_instance_cache()
        yield
    finally:
        _set(before)
        fsspec.get_filesystem_class("s3").clear_instance_cache()


def _set(values):
    for name, value in values.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
