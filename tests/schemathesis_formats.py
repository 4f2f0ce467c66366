"""Values of the formats that the OpenAPI document has and JSON Schema does not, and patience.

Addresses of BMCs are of machines that do not answer; the run has no way out in any case. Not here:
what is called, and how: that is schemathesis.toml.
"""

import base64
import json

import schemathesis
from hypothesis import strategies as st

NAME = r"[a-z]([a-z0-9-]{0,20}[a-z])?"
HOST = st.one_of(
    st.from_regex(NAME + r"\.example", fullmatch=True),
    st.from_regex(r"10\.(25[0-5]|1?[0-9]{1,2})\.(25[0-5]|1?[1-9]?[0-9])\.[1-9]", fullmatch=True),
    st.sampled_from(["[fd00::1]", "[2001:db8::17]"]),
)
PORT = st.one_of(st.just(""), st.integers(1, 65535).map(lambda port: f":{port}"))
PATH = st.from_regex(r"(/[A-Za-z0-9._-]{1,12}){0,3}", fullmatch=True)


def joined(*parts):
    return st.tuples(*parts).map("".join)


def listed(one):
    return st.lists(one, max_size=4).map(",".join)


# Of keys that nobody has.
REQUEST = """-----BEGIN CERTIFICATE REQUEST-----
MIHFMG4CAQAwDDEKMAgGA1UEAwwBeDBZMBMGByqGSM49AgEGCCqGSM49AwEHA0IA
BMBPE3tLU4adzZTpwJ5e/x5pq1LKHoNhif1vxJZG+28U0P5j4xgzi1PGww/KUv2z
cqec3158GzB1wwVEokAV1UGgADAKBggqhkjOPQQDAgNHADBEAiBBfUZcmbbrCmTs
ku7DHJSieUirFUvSoB2RvmbthShfrwIgLfr5Q9l0+ZLC65DwC0EVrSLJRU2mKbqZ
cQZuE19NLLs=
-----END CERTIFICATE REQUEST-----
"""
CERTIFICATE = """-----BEGIN CERTIFICATE-----
MIIBcDCCARWgAwIBAgIUbrgoNuxlMXUtGfUJZKk6pHcSXrwwCgYIKoZIzj0EAwIw
DDEKMAgGA1UEAwwBeDAgFw0yNjExMjExNTQ0MDNaGA8yMTI2MTAyODE1NDQwM1ow
DDEKMAgGA1UEAwwBeDBZMBMGByqGSM49AgEGCCqGSM49AwEHA0IABB0WyThMFJST
rKnAV5VVcWPH1ly8qWO71msDILa2x/XpYbxzj6+yGuuJy9MO4XOoSpQRlJNHmN3j
a4phZuU3h/mjUzBRMB0GA1UdDgQWBBQ3e4fLArnQ4c9JRdhJlYEUVo/YzDAfBgNV
HSMEGDAWgBQ3e4fLArnQ4c9JRdhJlYEUVo/YzDAPBgNVHRMBAf8EBTADAQH/MAoG
CCqGSM49BAMCA0kAMEYCIQC3yRAFW0mKqkMS3HWYiipF3PD8vsYViS9D79Yk8E3q
swIhAJrVDenjMtgqhxf3NbPzU6ZDu527ZQ6QHwvOFhhaqcv6
-----END CERTIFICATE-----
"""

KUBECONFIG = f"""current-context: x
clusters:
- name: c
  cluster:
    server: https://192.0.2.1:6443
    certificate-authority-data: {base64.b64encode(CERTIFICATE.encode()).decode()}
contexts:
- name: x
  context: {{cluster: c, user: u}}
users:
- name: u
  user: {{token: hunter2}}
"""

WORD = st.from_regex(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,8}[A-Za-z0-9])?", fullmatch=True)
WORDS = st.lists(WORD, min_size=1, max_size=3).map(",".join)
LABEL = st.one_of(
    WORD,
    joined(st.just("!"), WORD),
    joined(WORD, st.sampled_from(["=", "==", "!="]), WORD),
    joined(WORD, st.sampled_from([" in (", " notin ("]), WORDS, st.just(")")),
)
FIELD = joined(
    st.sampled_from(["metadata.name", "metadata.labels.rack", "spec.group", "status.state"]),
    st.sampled_from(["=", "==", "!="]),
    WORD,
)
JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.text(max_size=8)),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=5,
)

for name, values in {
    "bmc-address": joined(
        st.sampled_from(["redfish://", "redfish+http://", "redfish-virtualmedia+https://"]),
        HOST,
        PORT,
        st.sampled_from(["", "/", "/redfish/v1", "/redfish/v1/Systems/1"]),
    ),
    "image-url": joined(st.sampled_from(["http://", "https://"]), HOST, PORT, PATH),
    "https-origin": joined(st.just("https://"), HOST, PORT, st.sampled_from(["", "/"])),
    "kubeconfig": st.just(KUBECONFIG),
    "certificates-pem": st.sampled_from([CERTIFICATE, CERTIFICATE * 2]),
    "pkcs10-pem": st.just(REQUEST),
    "label-selector": listed(LABEL),
    "field-selector": listed(FIELD),
    "json": JSON.map(json.dumps),
}.items():
    schemathesis.openapi.format(name, values)


LONG = {str(seconds) for seconds in range(2, 61)}


@schemathesis.hook
def before_call(context, case, kwargs):
    """A reader may wait for a minute, or follow lines that do not come; none does so long here."""
    query = case.query or {}
    if case.path == "/v1/hosts/{name}" and str(query.get("wait")) in LONG:
        query["wait"] = 1
    if case.path == "/v1/hosts/{name}/logs" and str(query.get("follow")).lower() == "true":
        kwargs["timeout"] = 1
