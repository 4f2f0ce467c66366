"""Writes a raw image with ironic-python-agent's own streaming code: URL ALGORITHM DIGEST DEVICE.

Nothing of the agent is replaced but the message bus, which is not started.
"""
import sys

from ironic_python_agent import config  # noqa: F401  (registers the options)
from ironic_python_agent.extensions import standby
from oslo_config import cfg

url, algorithm, digest, device = sys.argv[1:]
cfg.CONF([], project="ironic-python-agent", default_config_files=[])
extension = standby.StandbyExtension()
extension.partition_uuids = {}  # without, 13.0.0 fails after all bytes are written
extension._stream_raw_image_onto_device(
    {
        "id": "bench",
        "urls": [url],
        "disk_format": "raw",
        "os_hash_algo": algorithm,
        "os_hash_value": digest,
    },
    device,
)
