"""Write docs/systems.md: every system that the five papers compare with, and what of it is here.

Run it after a change of scripts/experiments/systems.yaml, of a printed table or of a network::

    PYTHONPATH=scripts python scripts/systems_page.py
"""

import logging
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from experiments.description import Method, PrintedTable, read_document, read_experiment, read_printed
from experiments.shared import ComparedSystem, compared_systems, system_printed_as

from nucsam_monai.apps.command_line import run_command

if TYPE_CHECKING:
    from torch import nn

PAGE = Path(__file__).parents[1] / "docs" / "systems.md"
PAPERS: Mapping[str, str] = {
    "unsam": "UN-SAM",
    "sac": "SAC",
    "promptnucseg": "PromptNucSeg",
    "sam_eunet3p": "eU-Net3+",
    "cfrsam": "CFR-SAM",
}
"""Names of the papers by the folders of their tables."""

HEAD = """# Compared systems

Every system that one of the five papers prints a row of. What runs here trains with the same data,
augmentation, metrics and outputs as the methods, and is a row of the papers' [experiments](experiments.md). The
list behind this page and those rows is `scripts/experiments/systems.yaml`; `scripts/systems_page.py` writes the
page, and tests compare it with the code: every command below names a bundle and keys that exist, its network is
built at the paper's size and has the parameters below, and a small one of the same kind trains and infers.
"""

FOOT = """
## Notes

- **Parameters** are those that learn, in millions: with one class, and for systems on SAM with ViT-H unless the
  command names another one. Systems with a rule of their own, from HoVer-Net to CellViT, have more
  where they learn the types of nuclei of a dataset.
- **Medical SAMs** are ways of fine-tuning in the bundle `sac`, without its generator (`--n_points 0`): no
  points at all, or `--n_expert 2048`, a point on each nucleus. `--schedule sequential` trains the datasets one
  after the other. UN-SAM's settings for all of them (Adam, 30 epochs, factor 0.98) are `nucsam train sac paper
  unsam_protocol`. The adapter that Med-SA's paper has in the decoder is missing. SAMUS sees 256 px: it learns from
  crops and answers in tiles, as shrunk images would lose their nuclei. The text of its paper gives the parts, but
  not all of their sizes; with ViT-B ours has 130.2 million parameters, frozen ones included.
- **Whole tables** lack what is not legible in the texts of the papers that we have: the rows of adapters and LoRA in
  CFR-SAM 8, the time of ViT-B in SAC 7, a distance in UN-SAM III. nnU-Net's row is that of its network. The two
  tables of tissues are without the standard deviations below them.
- **nnU-Net** as a whole is a program of its own. `nucsam datasets to_nnunet data/monuseg` writes its raw format
  and says which commands follow, `nucsam datasets from_nnunet <folder> --dataset data/monuseg --output_dir
  <folder>` makes label maps of its predictions, and `nucsam evaluate --predictions` measures them. Tests read
  back what is written; nnU-Net itself was not run.
- **Weights that authors publish**, for example those of UN-SAM (MIT), can't be loaded: how their files name the
  tensors is not documented, and with guessed names a file could load wrongly without an error. They are refused
  with a message. Networks of the released sizes are there: `network_def#spgen#variant released`,
  `network_def#decoder#joint_queries True`.
"""


def parameters_m(system: ComparedSystem) -> float:
    """Return the parameters of a system that learn, in millions; nothing is allocated."""
    import torch

    if not system.method.get("train", True):
        return 0.0
    with torch.device("meta"):
        network = _network(system)
    return sum(one.numel() for one in network.parameters() if one.requires_grad) / 1e6


def _network(system: ComparedSystem) -> "nn.Module":
    from nucsam_monai.networks import build_detector
    from nucsam_monai.networks.sac import SAC
    from nucsam_monai.systems import build_network

    settings = system.method.get("settings", {})
    if system.method["bundle"] == "baselines":
        return build_network(settings["baseline"])
    if system.method["bundle"] == "detectors":
        return build_detector(settings["detector"], ["nucleus"])
    return SAC(
        "vit_h",
        adapter=settings["adapter"],
        sam={"train_prompt_encoder": settings.get("train_prompt_encoder", False)},
        lora={"rank": settings.get("lora_rank", "d/4")},
        generator={"n_points": settings["n_points"]},
    )


def tables_of() -> dict[str, list[str]]:
    """Return the tables that print each system, by its name."""
    tables: dict[str, list[str]] = {name: [] for name in compared_systems()}
    for folder, paper in PAPERS.items():
        file = PAGE.parents[1] / "scripts" / "experiments" / folder / "printed.yaml"
        for number in read_document(file)["tables"]:
            rows = read_printed(PrintedTable(file, str(number))).values
            found = {system.name for row in rows if (system := system_printed_as(row)) is not None}
            for name in found:
                tables[name].append(f"{paper} {number}")
    return tables


@dataclass(frozen=True)
class TableState:
    """How much of a printed table its experiment produces.

    Attributes:
        name: paper and number.
        rows: number of printed rows.
        missing: rows that are printed only, and columns that the experiment does not measure.
    """

    name: str
    rows: int
    missing: tuple[str, ...]

    @property
    def state(self) -> str:
        """``whole``, ``part`` or ``none``."""
        return "whole" if not self.missing else "none" if len(self.missing) >= self.rows else "part"


def table_states() -> list[TableState]:
    """Return what the experiments of the papers' numbered tables produce in the form ``paper``."""
    states = []
    for folder, paper in PAPERS.items():
        files = (PAGE.parents[1] / "scripts" / "experiments" / folder).glob("table_*.yaml")
        for file in sorted(files, key=lambda file: int(file.stem.removeprefix("table_"))):
            experiment = read_experiment(file, "paper")
            if experiment.printed is None:
                continue
            printed = read_printed(experiment.printed)
            by_class = any(metric.startswith("mpq") or ":" in metric for metric in printed.metrics)
            run = {
                method.printed or method.name
                for method in experiment.methods
                if not by_class or _knows_classes(method)
            }
            missing = [row for row in printed.values if row not in run]
            missing += [metric for metric in printed.metrics if metric not in experiment.metrics]
            states.append(TableState(f"{paper} {printed.number}", len(printed.values), tuple(missing)))
    return states


def _knows_classes(method: Method) -> bool:
    from nucsam_monai.systems import system_named

    return method.bundle != "baselines" or system_named(method.options.settings["baseline"]).knows_classes


def tables_section(states: Sequence[TableState]) -> list[str]:
    """Return the lines of the page that say which tables are whole."""
    whole, part, none = ([one for one in states if one.state == state] for state in ("whole", "part", "none"))
    return [
        f"\n## {len(states)} tables: {len(whole)} whole, {len(part)} in part, {len(none)} not at all\n",
        "In a whole table every printed row is a method of its experiment, and every printed column a metric, in the "
        f"form `paper`: {', '.join(one.name for one in whole)}. Of the others these rows are printed only, for the "
        "reasons above:\n",
        "| table | rows that run | printed only |",
        "|---|---|---|",
        *(
            f"| {one.name} | {one.rows - len(one.missing)} of {one.rows} | {', '.join(one.missing)} |"
            for one in states
            if one.missing
        ),
    ]


def beyond_the_papers() -> list[str]:
    """Return the keys of the bundle ``baselines`` that no paper has a row of."""
    from nucsam_monai.systems import SYSTEMS

    used = {system.method.get("settings", {}).get("baseline", "") for system in compared_systems().values()}
    kinds = used | {key.partition("-")[0] + "-*" for key in used if "-" in key}
    return [key for key in SYSTEMS if key not in kinds]


def page(parameters: Mapping[str, float]) -> str:
    """Return the page; ``parameters`` are those of each system that runs, in millions."""
    tables, systems = tables_of(), compared_systems().values()
    here = [
        f"| {one.name} | {'; '.join(tables[one.name]) or '-'} | `{one.command}` | {one.source} | {one.code} | "
        f"{parameters[one.name]:.2f} | builds, {'trains, ' * one.method.get('train', True)}infers |"
        for one in systems
        if one.runs
    ]
    others = [
        f"| {one.name} | {'; '.join(tables[one.name]) or '-'} | {one.source} | {one.reason} |"
        for one in systems
        if not one.runs
    ]
    keys = ", ".join(f"`{key}`" for key in beyond_the_papers())
    lines = [
        HEAD,
        f"## {len(here)} systems that run\n",
        "| system | tables | command | source | code and its licence | parameters (M) | state |",
        "|---|---|---|---|---|---|---|",
        *here,
        '\n"Ours" is this package\'s, Apache-2.0, written from the paper. Beyond the papers `--baseline` takes '
        f"{keys}; `*` is an encoder of segmentation-models-pytorch (MIT).\n",
        f"## {len(others)} systems of which only the printed numbers are here\n",
        "Reports list their rows below our table, with the reason.\n",
        "| system | tables | source | why |",
        "|---|---|---|---|",
        *others,
        *tables_section(table_states()),
        FOOT,
    ]
    return "\n".join(lines).rstrip() + "\n"


def main() -> None:
    """Write the page."""
    logging.getLogger("nucsam_monai").setLevel(logging.ERROR)  # that nothing is pretrained is no news here
    PAGE.write_text(page({one.name: parameters_m(one) for one in compared_systems().values() if one.runs}))


if __name__ == "__main__":
    sys.exit(run_command(main))
