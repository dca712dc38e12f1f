"""Each sink as the configuration has it: how its credentials are put together, and the sink itself.

A row of `UPSTREAMS` (lanes.py) names one function for each.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

from sidecar.config import Config
from sidecar.credentials import ACCOUNT_HEADER, KEY_HEADER, Accounts, Credentials, Secret
from sidecar.sinks import Sink
from sidecar.sinks.agentex import AgentexSink
from sidecar.sinks.credential_file import CredentialFile
from sidecar.sinks.http import UpstreamClient
from sidecar.sinks.resource import resource_attributes
from sidecar.sinks.sgp import SgpSink, enrichment

AGENTEX_KEY = "x-agent-api-key"
# Set in Temporal workers, where a span's START and END can reach different pods (D20).
_TEMPORAL_VARIABLES = ("WORKFLOW_NAME", "WORKFLOW_TASK_QUEUE")


class Given(NamedTuple):
    """What a sink is made of: the configuration, and what the pod knows.

    `environ`: the pod's variables. `repaired` is called when a write took more than one request.
    `client` has the credentials of the sink's account.
    """

    config: Config
    environ: Mapping[str, str]
    accounts: Accounts
    repaired: Callable[[str], None]
    client: UpstreamClient


def agentex_credentials(config: Config, _: Accounts, file: CredentialFile, __: int) -> Credentials:
    """One key for all accounts: it names an agent, not a tenant (D25)."""
    section = config.agentex
    return Credentials(
        {AGENTEX_KEY: section.api_key},
        in_file=lambda: file.headers,
        relay=True,
        # Without authentication, Agentex needs no key but still refuses a wrong one.
        required=bool(section.api_key_file),
    )


def agentex_sink(given: Given) -> Sink:
    """The Agentex sink."""
    return AgentexSink(given.client, given.repaired)


def sgp_credentials(
    config: Config, accounts: Accounts, file: CredentialFile, account: int
) -> Credentials:
    """A key and an account. A configured key is for the configured account, if there is one."""
    section = config.sgp
    own = account == 0 or accounts.by_request
    return Credentials(
        {
            KEY_HEADER: section.api_key if own else Secret(""),
            ACCOUNT_HEADER: Secret(accounts.id_of(account)),
        },
        in_file=lambda: file.headers if own else {},
        relay=section.relay and own,
        required=True,
    )


def sgp_sink(given: Given) -> Sink:
    """The SGP sink of one account."""
    section = given.config.sgp
    open_writes = section.open_writes
    if open_writes == "auto":
        open_writes = not any(given.environ.get(name) for name in _TEMPORAL_VARIABLES)
    return SgpSink(
        given.client,
        max_batch=section.max_batch,
        max_batch_bytes=section.max_batch_bytes,
        enrichment=enrichment(given.environ, resource_attributes(given.config.pod)),
        open_writes=open_writes,
    )


def otlp_credentials(config: Config, _: Accounts, file: CredentialFile, __: int) -> Credentials:
    """Any headers. With a file of them, nothing is sent before it could be read."""
    section = config.otlp
    return Credentials(
        section.headers,
        in_file=lambda: file.headers,
        relay=False,
        required=False,
        needs_file=bool(section.headers_file),
    )


def otlp_sink(given: Given) -> Sink:
    """The OTLP sink; its modules are imported only here, because few pods need them."""
    from sidecar.sinks.otlp import OtlpSink, otlp_resource  # noqa: PLC0415

    section = given.config.otlp
    return OtlpSink(
        given.client,
        max_batch=section.max_batch,
        max_batch_bytes=section.max_batch_bytes,
        resource=otlp_resource(given.environ, resource_attributes(given.config.pod)),
        compress=section.compression == "gzip",
        account_id=given.accounts.id_of,
    )
