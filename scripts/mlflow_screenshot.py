"""Take a picture of an experiment's page in MLflow with a headless Chromium.

Example:
    python scripts/mlflow_screenshot.py unsam_table_2-small docs/results/mlflow.png

It starts an MLflow server on the tracking store for as long as it takes. Chromium or Chrome has to be installed
(``apt-get install chromium``).
"""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from experiments.tracking import MLFLOW_EXPERIMENT

from nucsam_monai.apps.command_line import run_command
from nucsam_monai.apps.mlflow_server import served
from nucsam_monai.utils.errors import ConfigurationError
from nucsam_monai.utils.files import atomic_path

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
PAGE_S = 40.0
ATTEMPTS = 3
LOADING_MS = 8000  # of the page's own time, which stands still while it waits for data


def find_browser() -> str | None:
    """Return the path of a Chromium or Chrome; None where there is none."""
    return next((path for name in BROWSERS if (path := shutil.which(name))), None)


def browse(url: str, *options: str) -> str:
    """Open a page without a window, wait until it has loaded its data, and return what the browser prints.

    Raises:
        ConfigurationError: there is no browser, or it hangs.
    """
    browser = find_browser()
    if browser is None:
        raise ConfigurationError(f"none of {', '.join(BROWSERS)} is installed. Run: apt-get install chromium")
    with tempfile.TemporaryDirectory() as profile:
        command = [browser, "--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={profile}"]
        command += ["--disable-dev-shm-usage", f"--virtual-time-budget={LOADING_MS}", *options, url]
        for _ in range(ATTEMPTS):
            try:
                return subprocess.run(  # noqa: S603
                    command, capture_output=True, text=True, timeout=PAGE_S, check=True
                ).stdout
            except subprocess.TimeoutExpired:  # the first page of a fresh profile may hang on a busy machine
                continue
        raise ConfigurationError(f"{url}: the browser did not finish in {ATTEMPTS} x {PAGE_S:g} s.")


def runs_page(address: str, store: str) -> str:
    """Return the address of the page with the runs of all experiments; that of a run is ``<page>/<run id>``.

    Raises:
        ConfigurationError: the store has none.
    """
    from nucsam_monai.handlers.tracking_store import connect

    found = connect(store).get_experiment_by_name(MLFLOW_EXPERIMENT)
    if found is None:
        raise ConfigurationError(f"{store}: no experiments. Run one with: nucsam experiment first.")
    return f"{address}/#/experiments/{found.experiment_id}/runs"


def parent_of(experiment: str, store: str) -> str:
    """Return the id of the parent run of an experiment.

    Raises:
        ConfigurationError: the store has no such experiment.
    """
    from nucsam_monai.handlers.tracking_store import connect

    client = connect(store)
    found = client.get_experiment_by_name(MLFLOW_EXPERIMENT)
    condition = f"tags.experiment = '{experiment}' and tags.workflow = 'benchmark'"
    runs = client.search_runs([found.experiment_id], filter_string=condition, max_results=1) if found else []
    if not runs:
        raise ConfigurationError(f"{store}: no experiment '{experiment}'. Run it with: nucsam experiment.")
    return str(runs[0].info.run_id)


def main(
    experiment: str, output: str, store: str | None = None, width: int = 1500, height: int = 1000
) -> str:
    """Write a PNG of the page of an experiment: its runs, tags and values.

    Args:
        experiment: name and form, for example ``unsam_table_2-small``.
        output: the PNG file.
        store: MLflow tracking URI; the project's own by default.
        width: of the page in pixels.
        height: of the page in pixels.
    """
    from nucsam_monai.handlers import resolve_tracking_uri, tracking_uri

    uri = resolve_tracking_uri(tracking_uri() if store is None else store) or ""
    with served(uri) as (address, _), atomic_path(Path(str(output))) as temporary:
        page = f"{runs_page(address, uri)}/{parent_of(experiment, uri)}"
        browse(page, f"--screenshot={temporary}", f"--window-size={width},{height}")
    return output


if __name__ == "__main__":
    sys.exit(run_command(main))
