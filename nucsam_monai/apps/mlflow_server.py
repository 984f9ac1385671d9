"""Show the recorded trainings and evaluations with MLflow in a browser.

The server runs on this machine only. It opens the list of runs, because
MLflow's own start page is for language models and says "No data available".

Example:
    nucsam mlflow
    nucsam mlflow --store elsewhere/mlflow.db --port 5001
"""

import argparse
import http.client
import importlib.util
import socket
import subprocess
import sys
import tempfile
import time
import webbrowser
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from urllib.parse import urlsplit

from nucsam_monai.utils.errors import ConfigurationError, NucSAMError

_START_S = 90.0


def experiment_pages(store: str, server: str) -> dict[str, str]:
    """Return the address of every experiment that has runs, by name, the latest run first.

    Args:
        store: resolved tracking URI.
        server: address of the server that shows it.
    """
    from nucsam_monai.handlers.run_page import (
        runs_page,
    )  # they import torch, and the help comes at once without
    from nucsam_monai.handlers.tracking_store import connect

    client = connect(store)
    latest: dict[str, tuple[int, str]] = {}
    for experiment in client.search_experiments():
        runs = client.search_runs([experiment.experiment_id], max_results=1)
        if runs:
            page = runs_page(server, experiment.experiment_id)
            latest[experiment.name] = (runs[0].info.start_time, page)
    return {name: page for name, (_, page) in sorted(latest.items(), key=lambda one: one[1], reverse=True)}


@contextmanager
def served(store: str, port: int = 0) -> Iterator[tuple[str, "subprocess.Popen[bytes]"]]:
    """Serve MLflow's pages of a store on this machine and give their address and the server's process.

    Args:
        store: resolved tracking URI.
        port: 0 takes a free one.

    Raises:
        ConfigurationError: the port is taken, or the server does not start.
    """
    with socket.socket() as found:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            found.bind(("127.0.0.1", port))
        except OSError as error:
            raise ConfigurationError(
                f"--port {port}: {error.strerror}. Stop the program that uses the port, or pass another one."
            ) from error
        port = found.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", store]
    command += ["--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)  # noqa: S603
        try:
            address = f"http://127.0.0.1:{port}"
            _wait(address, process)
            yield address, process
        finally:
            process.terminate()
            process.wait(timeout=20)


def _wait(address: str, process: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + _START_S
    while process.poll() is None and time.monotonic() < deadline:
        connection = http.client.HTTPConnection(urlsplit(address).netloc, timeout=2)
        try:
            connection.request("GET", "/health")
            if connection.getresponse().status == http.client.OK:
                return
        except OSError:
            time.sleep(0.2)
        finally:
            connection.close()
    raise ConfigurationError(f"{address}: the MLflow server did not start. Try: mlflow server")


def show(store: str, server: str, *, browser: bool) -> None:
    """Print the address of every experiment and open the one with the latest run."""
    from nucsam_monai.handlers.run_facts import without_passwords

    pages = experiment_pages(store, server)
    for name, page in pages.items():
        sys.stdout.write(f"{name:<24}{without_passwords(page)}\n")
    if not pages:
        sys.stdout.write(f"{without_passwords(server)}  (no runs yet)\n")
    sys.stdout.flush()
    if browser:
        webbrowser.open(next(iter(pages.values()), server))


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until Ctrl+C, or point to the server that the store is; return the exit code."""
    parser = argparse.ArgumentParser(
        "nucsam mlflow", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--store", help="tracking URI or path of a database (default: mlflow.db of the trainings)"
    )
    parser.add_argument(
        "--port", type=int, help="port of the server (default: 5000, as in the logs of the runs)"
    )
    parser.add_argument("--no_browser", action="store_true", help="only print the addresses")
    given = parser.parse_args(arguments)
    from nucsam_monai.handlers import resolve_tracking_uri, tracking_uri
    from nucsam_monai.handlers.run_page import PORT

    try:
        if importlib.util.find_spec("mlflow") is None:
            raise ConfigurationError("MLflow is not installed. Run: pip install 'nucsam-monai[train]'.")
        store = resolve_tracking_uri(given.store or tracking_uri())
        if store is None:
            raise ConfigurationError("--store off: there is nothing to show. Pass a database or an address.")
        if store.startswith("http"):
            show(store, store, browser=not given.no_browser)
            return 0
        with served(store, PORT if given.port is None else given.port) as (server, process):
            show(store, server, browser=not given.no_browser)
            sys.stdout.write("Ctrl+C stops the server.\n")
            sys.stdout.flush()
            return process.wait()
    except KeyboardInterrupt:
        return 0
    except (NucSAMError, OSError) as error:
        sys.stderr.write(f"error: {error}\n")
    return 1


if __name__ == "__main__":
    sys.exit(main())
