"""``gradtf certs``: TLS for a deployed SuperLink. An own authority, server certificates, and checks of any files."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import click

from gradtf_fl.cli.finding_table import failures, findings_document, print_findings
from gradtf_fl.cli.options import emit_json, json_option
from gradtf_fl.file_names import CA_CERTIFICATE

FAILED = 5
DAYS = click.IntRange(1, 36_500)


@click.group()
def certs() -> None:
    """Make and check the TLS files of Flower's SuperLink.

    \b
    Example:
        gradtf certs init ca
        gradtf certs issue ca --host superlink.example.org --out tls
        gradtf certs verify --ca ca/ca.crt --cert tls/server.crt \\
            --key tls/server.key --host superlink.example.org
    """


@certs.command(short_help="Make an authority.", epilog="Example: gradtf certs init ca --name 'Hospitals of the north'")
@click.argument("folder", type=click.Path(path_type=Path), metavar="DIR")
@click.option("--name", default="gradtf federation", show_default=True, help="The authority's common name.")
@click.option("--days", type=DAYS, default=3650, show_default=True, help="Validity.")
@json_option
def init(folder: Path, name: str, days: int, as_json: bool) -> None:
    """Make an authority: DIR/ca.crt for every organization, DIR/ca.key (0600) for nobody else.

    An existing authority is never overwritten. Send organizations its fingerprint by another channel.
    """
    from gradtf_fl.deployment import fingerprint, init_authority

    authority = init_authority(folder, name, days)
    end = authority.certificate.not_valid_after_utc
    if as_json:
        emit_json(
            {
                "certificate": str(authority.certificate_path),
                "key": str(authority.key_path),
                "name": name,
                "not_after": end.isoformat(),
                "sha256": fingerprint(authority.pem),
            }
        )
        return
    click.echo(f"{authority.certificate_path}: give it to every organization; valid until {end:%Y-%m-%d}")
    click.echo(f"{authority.key_path}: keep it off the server, with a copy in a safe place")
    click.echo(f"SHA-256 {fingerprint(authority.pem)}")


@certs.command(
    short_help="Issue a server's certificate and key.",
    epilog="Example: gradtf certs issue ca --host superlink.example.org --host 192.0.2.7 --out tls",
)
@click.argument("folder", type=click.Path(path_type=Path), metavar="DIR")
@click.option(
    "--host",
    "hosts",
    multiple=True,
    required=True,
    metavar="NAME_OR_IP",
    help="How clients reach the server. Repeatable; localhost, 127.0.0.1 and ::1 are always included.",
)
@click.option("--out", type=click.Path(path_type=Path), required=True, metavar="OUT", help="Folder of the two files.")
@click.option("--days", type=DAYS, default=365, show_default=True, help="Validity; ends with the authority's.")
@json_option
def issue(folder: Path, hosts: tuple[str, ...], out: Path, days: int, as_json: bool) -> None:
    """Issue OUT/server.crt and OUT/server.key (0600) with the authority in DIR.

    To renew, run it again: both files change in one step, even after a kill. Then restart the
    SuperLink.
    """
    from gradtf_fl.deployment import issue_server

    made = issue_server(folder, hosts, out, days)
    if made.shortened:
        click.echo(f"gradtf: ends with its authority on {made.not_after:%Y-%m-%d}, before {days} days", err=True)
    if as_json:
        emit_json(
            {
                "certificate": str(made.certificate_path),
                "key": str(made.key_path),
                "hosts": list(made.hosts),
                "not_after": made.not_after.isoformat(),
                "sha256": made.fingerprint,
                "shortened": made.shortened,
            }
        )
        return
    click.echo(f"{made.certificate_path}: for {', '.join(made.hosts)}; valid until {made.not_after:%Y-%m-%d}")
    click.echo(f"{made.key_path}: its key, mode 0600")
    click.echo(f"SHA-256 {made.fingerprint}")
    files = f"--certificate {made.certificate_path} --key {made.key_path}"
    click.echo(f"for gradtf server init: --ca {folder / CA_CERTIFICATE} {files}")


@certs.command(
    short_help="Check a server's certificate and key.",
    epilog="Example: gradtf certs verify --ca ca/ca.crt --cert tls/server.crt --key tls/server.key "
    "--host superlink.example.org",
)
@click.option("--ca", type=click.Path(path_type=Path), required=True, metavar="FILE", help="What clients trust (PEM).")
@click.option(
    "--cert",
    type=click.Path(path_type=Path),
    required=True,
    metavar="FILE",
    help="The server's certificate, then its intermediates (PEM).",
)
@click.option("--key", type=click.Path(path_type=Path), required=True, metavar="FILE", help="The server's key (PEM).")
@click.option(
    "--host", "hosts", multiple=True, metavar="NAME_OR_IP", help="A host that clients connect to. Repeatable."
)
@json_option
def verify(ca: Path, cert: Path, key: Path, hosts: tuple[str, ...], as_json: bool) -> int:
    """Check chain, hosts, dates, key, use and file mode; any CA's files, also with intermediates.

    Exits with 5 when a finding fails, 0 otherwise (warnings included), 2 when a file is missing or holds no
    certificate.
    """
    from gradtf_fl.deployment import check

    findings = check(ca, cert, key, hosts, datetime.now(UTC))
    if as_json:
        emit_json(findings_document(findings))
    else:
        print_findings(findings)
    return FAILED if failures(findings) else 0
