"""The configuration's sections: what all of them have, and those of the upstreams (config.py)."""

from collections.abc import Iterator, Mapping
from typing import Annotated, ClassVar, Literal, NamedTuple

import msgspec
from msgspec import Meta
from msgspec.structs import replace

from sidecar.config_values import AUTO, Size, utf8
from sidecar.credentials import Secret, is_header_safe
from sidecar.process.addresses import parse_base_url
from sidecar.spans.span import PAYLOADS, Payload

Count = Annotated[int, Meta(ge=1)]
Seconds = Annotated[float, Meta(ge=0)]
Positive = Annotated[float, Meta(gt=0)]


class Mistake(NamedTuple):
    """A rule that the values of some keys of a section do not meet."""

    keys: tuple[str, ...]
    text: str


class InvalidSection(ValueError):
    """Raised by the constructor of a section."""

    def __init__(self, mistakes: list[Mistake]) -> None:
        super().__init__("; ".join(f"{' and '.join(keys)} {text}" for keys, text in mistakes))
        self.mistakes = mistakes


class Section(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A section of the configuration, with the default of every key."""

    def __post_init__(self) -> None:
        if mistakes := list(self._mistakes()):
            raise InvalidSection(mistakes)

    def _mistakes(self) -> Iterator[Mistake]:
        """Check the section's rules, which are more than its types say."""
        yield from ()

    def _above_0(self, *keys: str, auto: bool = False) -> Iterator[Mistake]:
        for key in keys:
            if getattr(self, key) <= 0 and not (auto and getattr(self, key) == AUTO):
                yield Mistake((key,), f"must be a size above 0{', or auto' if auto else ''}")


class UpstreamConfig(Section, frozen=True):
    """What the sections of all upstreams have; the files of certificates are PEM.

    `url_key` names the key with the upstream's URL, and `file_key` the one with the path of a file
    of credentials, which has the `file_holds`. `credential_keys`: whoever sets one of these means
    to use the upstream. `enabling_keys`: those that it may need besides. `enabled_by`: what to set.
    `relays`: whether the credential can be that of the agents' requests.
    """

    url_key: ClassVar[str] = "base_url"
    file_key: ClassVar[str] = "api_key_file"
    file_holds: ClassVar[str] = "key"
    credential_keys: ClassVar[tuple[str, ...]] = ("api_key", "api_key_file", "account_id")
    enabling_keys: ClassVar[tuple[str, ...]] = ("base_url",)
    enabled_by: ClassVar[str]
    relays: ClassVar[bool] = True

    ca_file: str = ""
    client_cert_file: str = ""
    client_key_file: str = ""
    hide: tuple[Payload, ...] = ()

    @property
    def missing(self) -> str:
        """What it needs to be enabled, and how to set it; "" if it is enabled."""
        raise NotImplementedError

    @property
    def url(self) -> str:
        """The upstream's URL, "" if there is none."""
        return str(getattr(self, self.url_key))

    @property
    def credential_file(self) -> str:
        """The path of the file with credentials, "" for none."""
        return str(getattr(self, self.file_key))

    def credentials(self, origins: Mapping[str, str]) -> str:
        """Which credentials are used, for people; `origins` says where a key of this is set."""
        if self.credential_file:
            return f"the {self.file_holds} in {utf8(masked_path(self.credential_file))}"
        set_by = origins.get("api_key")
        return f"the key in {set_by}" if set_by else "the keys that agents send"

    @property
    def hidden(self) -> int:
        """The bits of the `PAYLOADS` that the upstream must not see."""
        return sum(1 << PAYLOADS.index(name) for name in self.hide)

    def without_url(self) -> "UpstreamConfig":
        """The section of an upstream that is off, because its URL can't be used."""
        return replace(self, **{self.url_key: ""})

    def _mistakes(self) -> Iterator[Mistake]:
        try:
            if self.url:
                parse_base_url(self.url)
        except ValueError as error:
            yield Mistake((self.url_key,), str(error))
        if self.client_key_file and not self.client_cert_file:
            yield Mistake(("client_key_file",), "needs client_cert_file, the certificate")


class AgentexConfig(UpstreamConfig, frozen=True):
    """The Agentex API; enabled when a base URL is set."""

    enabled_by: ClassVar[str] = "agentex.base_url (AGENTEX_BASE_URL)"

    base_url: str = ""
    api_key: Secret = Secret("")
    api_key_file: str = ""
    max_concurrency: Count = 64
    timeout_s: Positive = 40.0

    @property
    def missing(self) -> str:
        """What it needs to be enabled, and how to set it; "" if it is enabled."""
        return "" if self.base_url else "the base URL is missing, set AGENTEX_BASE_URL"


SGP_PRODUCTION = "https://api.egp.scale.com"


class SgpConfig(UpstreamConfig, frozen=True):
    """The SGP API; enabled when an API key and an account id are set, or with `relay`.

    `base_url` is empty only if the pod's can't be used (config_load.py, operate/problems.py).
    """

    enabling_keys: ClassVar[tuple[str, ...]] = ("base_url", "relay")
    enabled_by: ClassVar[str] = (
        "sgp.api_key and sgp.account_id (SGP_API_KEY, SGP_ACCOUNT_ID), or sgp.relay"
    )

    base_url: str = SGP_PRODUCTION
    api_key: Secret = Secret("")
    api_key_file: str = ""
    account_id: str = ""
    max_batch: Annotated[int, Meta(ge=1, le=1000)] = 500
    max_batch_bytes: Size = Size(2**20)
    linger_s: Seconds = 0.1
    max_concurrency: Count = 8
    timeout_s: Positive = 60.0
    open_writes: Literal["auto"] | bool = "auto"
    relay: bool = False

    @property
    def missing(self) -> str:
        """What it needs to be enabled, and how to set it; "" if it is enabled."""
        has_key = bool(self.api_key or self.api_key_file)
        if not self.base_url:
            return "the base URL can't be used"
        if self.relay or (has_key and self.account_id):
            return ""
        if has_key:
            return "the account id is missing, set SGP_ACCOUNT_ID"
        if self.account_id:
            return "the API key is missing, set SGP_API_KEY"
        return "the API key and the account id are missing, set SGP_API_KEY and SGP_ACCOUNT_ID"

    def _mistakes(self) -> Iterator[Mistake]:
        yield from super()._mistakes()
        yield from self._above_0("max_batch_bytes")
        if not is_header_safe(self.account_id):
            yield Mistake(("account_id",), "must be printable ASCII")


OTLP_PATH = "/v1/traces"


class OtlpConfig(UpstreamConfig, frozen=True):
    """A receiver of OTLP over HTTP; enabled when an endpoint is set."""

    url_key: ClassVar[str] = "endpoint"
    file_key: ClassVar[str] = "headers_file"
    file_holds: ClassVar[str] = "headers"
    credential_keys: ClassVar[tuple[str, ...]] = ("headers", "headers_file")
    enabling_keys: ClassVar[tuple[str, ...]] = ("endpoint",)
    enabled_by: ClassVar[str] = "otlp.endpoint"
    relays: ClassVar[bool] = False

    endpoint: str = ""
    headers: dict[str, Secret] = {}
    headers_file: str = ""
    compression: Literal["none", "gzip"] = "none"
    max_batch: Count = 500
    max_batch_bytes: Size = Size(2**20)
    linger_s: Seconds = 0.1
    max_concurrency: Count = 8
    timeout_s: Positive = 30.0

    @property
    def missing(self) -> str:
        """What it needs to be enabled, and how to set it; "" if it is enabled."""
        return "" if self.endpoint else "the endpoint is missing, set otlp.endpoint"

    def credentials(self, origins: Mapping[str, str]) -> str:
        """Which headers are sent, for people."""
        found = [super().credentials(origins)] if self.headers_file else []
        if self.headers:
            found.append(f"{' and '.join(self.headers)} in {origins.get('headers', 'headers')}")
        return " and ".join(found) or "no credential"

    def _mistakes(self) -> Iterator[Mistake]:
        yield from super()._mistakes()
        yield from self._above_0("max_batch_bytes")
        if self.endpoint.rstrip("/").endswith(OTLP_PATH):
            text = f"must not end in {OTLP_PATH}, which the sidecar adds: leave that out"
            yield Mistake(("endpoint",), text)


def masked_path(path: str) -> str:
    """`path`, or `***` for one without a "/": somebody may have given the secret itself."""
    return path if "/" in path or not path else "***"
