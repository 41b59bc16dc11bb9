"""The `graft` command: parses what was typed and hands it to the file that does it.

Expected errors end in one line on stderr and exit code 1, mistakes in the command line in code 2.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import click

from graft_operator import __version__
from graft_operator.constants import TEMPLATE_NEWEST, TEMPLATE_OLDEST
from graft_operator.errors import GraftError

PORT = click.IntRange(0, 65_535)
FOLDER = click.Path(path_type=Path)
RUNTIME = click.option(
    "--runtime",
    envvar="GRAFT_RUNTIME",
    metavar="COMMAND",
    help="Run this as pods instead of the installed runtime.",
)


class _Group(click.Group):
    """Turns our errors into one line."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except GraftError as error:
            raise click.ClickException(str(error)) from error


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="graft")
def main() -> None:
    """Declarative multi-LoRA serving: manifests in, served models out."""


@main.command()
@click.argument("folder", type=FOLDER, default=Path())
@click.option("--port", type=PORT, default=0, show_default="free ports", help="First pod's port.")
@click.option(
    "--timeout",
    type=click.FloatRange(min=0.1),
    help="End with exit code 1 unless everything is Ready after this many seconds.",
)
@RUNTIME
@click.option("--verbose", "-v", is_flag=True, help="Show the control loop's log.")
def up(folder: Path, port: int, timeout: float | None, runtime: str | None, verbose: bool) -> None:
    """Serve the manifests in FOLDER with processes on this machine until Ctrl-C.

    Edit, add or remove manifests while it runs; changes take effect at once.
    """
    from graft_operator.cli.up import UpOptions, run_up

    sys.exit(run_up(UpOptions(folder, port, timeout, runtime, verbose)))


@main.command(context_settings={"ignore_unknown_options": True, "allow_extra_args": True})
@click.argument("model", required=False)
@click.option("--adapter", "-a", "adapters", multiple=True, metavar="NAME=URI", help="Repeatable.")
@click.option("--name", default=None, help="Name of the base model; default from MODEL.")
@click.option(
    "--port", type=PORT, default=None, help="Port on 127.0.0.1; 0 picks one. [default: 8000]"
)
@click.option("--endpoint", help="Object store of s3:// URIs; keys come from AWS_* variables.")
@click.option("--timeout", type=click.FloatRange(min=0.1), help="As for `graft up`.")
@RUNTIME
@click.option("--verbose", "-v", is_flag=True, help="Show the control loop's log.")
def serve(
    model: str | None,
    adapters: tuple[str, ...],
    name: str | None,
    port: int | None,
    endpoint: str | None,
    timeout: float | None,
    runtime: str | None,
    verbose: bool,
) -> None:
    """Serve MODEL (a folder, URI or name on the model hub) without manifests, for a quick look.

    Common flags of `vllm serve` are taken, too, and without MODEL the variables of Text Generation
    Inference's launcher (MODEL_ID, PORT, ...). What cannot be honoured is refused by name.
    """
    from graft_operator.cli.serve import ServeOptions, run_serve
    from graft_operator.cli.up import UpOptions

    own = ServeOptions(model, adapters, name, endpoint)
    options, port = own.with_peers(click.get_current_context().args, os.environ, port)
    for each in options.without_effect:
        click.echo(f"graft: {each} has no effect here", err=True)
    sys.exit(run_serve(options, UpOptions(Path(), port, timeout, runtime, verbose)))


@main.command()
@click.argument("what", default="all")
@click.argument("folder", type=FOLDER, default=None, required=False)
@click.option(
    "--output", "-o", type=click.Choice(["table", "wide", "json", "yaml"]), default="table"
)
def get(what: str, folder: Path | None, output: str) -> None:
    """Show what runs: WHAT is services, adapters, all, or KIND/NAME; FOLDER as given to `up`."""
    from graft_operator.cli.get import run_get

    run_get(what, folder, output)


@main.command()
@click.argument("what", metavar="KIND/NAME")
@click.argument("folder", type=FOLDER, default=Path())
def describe(what: str, folder: Path) -> None:
    """Show one object's conditions, revisions and events."""
    from graft_operator.cli.describe import run_describe

    run_describe(what, folder)


@main.command()
@click.option("--namespace", "-n", "namespaces", multiple=True, help="Serve only this; repeatable.")
@click.option(
    "--tenant-namespace",
    "tenant_namespaces",
    multiple=True,
    help="Take LoraAdapters, and nothing else, from this one, too; repeatable.",
)
@click.option("--kubeconfig", type=FOLDER, help="Default: $KUBECONFIG or the pod's own account.")
@click.option("--context", help="Context of the kubeconfig; default: its current one.")
@click.option("--runtime-image", help="Image of services that name none.")
@click.option(
    "--template-revision",
    type=click.IntRange(TEMPLATE_OLDEST, TEMPLATE_NEWEST),
    help="Pod template that new services get and others are offered.",
)
@click.option(
    "--log-format",
    type=click.Choice(["json", "text"]),
    default="text",
    help="Form of the log.",
)
@click.option(
    "--operator-namespace", help="Where it runs itself; network policies let it in from there."
)
@click.option("--health-port", default=8080, show_default=True, help="Probes and metrics.")
@click.option(
    "--audit-seconds",
    type=click.FloatRange(min=0.1),
    help="Pause between two complete lists beside the watches.",
)
@click.option(
    "--dead-watch-seconds",
    type=click.FloatRange(min=0.1),
    help="How long a watch may owe a change before the process ends with exit code 1.",
)
@click.option("--verbose", "-v", is_flag=True, help="Log every step.")
def operator(verbose: bool, **options: Any) -> None:
    """Run the operator on a Kubernetes cluster until SIGTERM."""
    from graft_operator.cli.operator import run

    if options["tenant_namespaces"] and not options["namespaces"]:
        raise click.UsageError("--tenant-namespace: without --namespace all namespaces are served")
    run(options, verbose=verbose)


@main.group()
def adapter() -> None:
    """Work with adapter files."""


@adapter.command()
@click.argument("folder", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.argument("uri")
@click.option("--name", help="Name of the LoraAdapter; default: the folder's name.")
@click.option("--namespace", help="Its namespace.")
@click.option("--service", default="SERVICE", help="Its InferenceService; else to be put in.")
@click.option("--secret", help="Secret with the credentials that pods use.")
@click.option("--endpoint", help="Another object store than the provider's own.")
@click.option("--overwrite", is_flag=True, help="Replace another version at the same URI.")
@click.option("--chat-template", is_flag=True, help="Serve it with its own chat_template.jinja.")
@click.option(
    "--sign-key",
    type=FOLDER,
    help="Sign the digest with the private key in this PEM file; its password, if it has one, "
    "comes from GRAFT_SIGN_KEY_PASSWORD.",
)
def publish(
    folder: Path,
    uri: str,
    endpoint: str | None,
    overwrite: bool,
    chat_template: bool,
    sign_key: Path | None,
    **names: str | None,
) -> None:
    """Copy an adapter's files from FOLDER to URI and print the LoraAdapter manifest.

    URI is s3://bucket/prefix, gs://bucket/prefix, az://account/container/prefix or file:///folder.
    Keys come from the variables that the provider's own tools read: AWS_*, GOOGLE_*, AZURE_*. The
    manifest carries the digest of what was copied.
    """
    from graft_operator.cli.publish import Publication, run_publish

    wanted = Publication(folder, uri, endpoint, overwrite, chat_template, sign_key)
    run_publish(wanted, names)


@adapter.command()
@click.argument("folder", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--chat-template", is_flag=True, help="As for `graft adapter publish`.")
def manifest(folder: Path, chat_template: bool) -> None:
    """Print the text whose SHA-256 is the digest of the adapter in FOLDER, for other tools to sign.

    One line for each file that belongs to the adapter: name, size in bytes, SHA-256.
    """
    from graft_operator.cli.publish import run_manifest

    run_manifest(folder, with_template=chat_template)


@adapter.command()
@click.argument("out", type=FOLDER)
@click.argument(
    "folders",
    nargs=-1,
    required=True,
    type=click.Path(path_type=Path, exists=True, file_okay=False),
)
@click.option("--weight", "-w", "weights", multiple=True, type=float, help="One for each FOLDER.")
@RUNTIME
def merge(
    out: Path, folders: tuple[Path, ...], weights: tuple[float, ...], runtime: str | None
) -> None:
    """Write the weighted sum of the adapters in FOLDERS to the new folder OUT.

    The sum is exact, as that of a request's `merged_adapters`: a module's rank is the sum of its
    ranks. Without weights the adapters count equally. OUT can be published as it is.
    """
    from graft_operator.cli.merge import run_merge

    sys.exit(run_merge(out, folders, weights, runtime))
