"""`python -m e2e.cluster`: what `make cluster`, `cluster-down`, `cluster-env` and `images` run."""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys
from contextlib import redirect_stdout

from e2e.cluster import clusters
from e2e.cluster.build import build, missing
from e2e.cluster.errors import LabError
from e2e.cluster.image_tools import build_images
from e2e.cluster.paths import Lab
from e2e.cluster.programs import MODULES


def main() -> None:
    """Parse the command line and do what it says."""
    parser = argparse.ArgumentParser(prog="python -m e2e.cluster", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    up = commands.add_parser("up", help="bring the test cluster up, building it if need be")
    up.add_argument("--control-plane", action="store_true", help="without a node: no pod runs")
    down = commands.add_parser("down", help="take it down and leave nothing behind")
    down.add_argument("--purge", action="store_true", help="forget the images, too")
    commands.add_parser("env", help="print what a shell needs to use it")
    program = commands.add_parser("program", help="build one of its programs, and print its path")
    program.add_argument("name", choices=[module.name for module in MODULES])
    images = commands.add_parser("images", help="build Graft's images for it")
    images.add_argument("name", nargs="*", help="only these")
    try:
        _run(parser.parse_args())
    except LabError as error:
        sys.exit(f"cluster: {error}")
    except subprocess.CalledProcessError as error:
        sys.exit(f"cluster: {shlex.join(map(str, error.cmd))} ended with {error.returncode}")


def _run(options: argparse.Namespace) -> None:
    match options.command:
        case "up":
            cluster = clusters.up(node=not options.control_plane)
            print(f'cluster: up ({cluster.origin}); eval "$(make -s cluster-env)" to use it')
        case "down":
            clusters.down(purge=options.purge)
        case "env":
            _print_exports()
        case "program":
            _print_program(options.name)
        case "images":
            build_images(tuple(options.name))


def _print_program(name: str) -> None:
    """Build a program unless it is there. What the build says goes to stderr."""
    lab = Lab()
    with redirect_stdout(sys.stderr):
        build(lab, [module for module in missing(lab, node=True) if module.name == name])
    print(lab.program(name))


def _print_exports() -> None:
    environment = clusters.find().environment
    names = Lab().exports if clusters.origin() is clusters.Origin.LAB else ("KUBECONFIG",)
    for name in names:
        print(f"export {name}={shlex.quote(environment[name])}")


if __name__ == "__main__":
    main()
