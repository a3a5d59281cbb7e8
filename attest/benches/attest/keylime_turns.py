"""Keylime's own functions, timed inside Python.

Reads from standard input which function is to have a turn, and how many times it is called; answers with the
nanoseconds of processor time that one call cost, programs that Keylime started included.
"""

import base64
import logging
import resource
import sys
import types
from pathlib import Path

# For signing policies only, and not to be had from PyPI.
sys.modules["gpg"] = types.ModuleType("gpg")
logging.disable(logging.CRITICAL)

from keylime.common.algorithms import Hash  # noqa: E402
from keylime.ima import ima  # noqa: E402
from keylime.mba.elparsing import tpm2_tools_elparser  # noqa: E402
from keylime.tpm import tpm_util  # noqa: E402

files = Path(sys.argv[1])
ak, message, signature, pcrs, eventlog = (
    (files / name).read_bytes() for name in ("ak.pem", "message", "signature", "pcrs", "eventlog")
)
nonce = base64.b64encode(bytes.fromhex((files / "nonce").read_text())).decode()
ima_lines = (files / "ima").read_text().split("\n")
ima_pcr = (files / "ima.pcr").read_text()


def checkquote():
    assert tpm_util.checkquote(ak, nonce, signature, message, pcrs, "sha256")


def ima_list():
    value, failure = ima.process_measurement_list(None, ima_lines, pcrval=ima_pcr, hash_alg=Hash.SHA256)
    assert not failure and value == ima_pcr


def event_log():
    failure, log = tpm2_tools_elparser.parse_binary_bootlog(eventlog)
    assert log, [event.context for event in failure.events]


def processor_time():
    used = [resource.getrusage(whose) for whose in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in used)


for line in sys.stdin:
    name, times = line.split()
    work = globals()[name]
    before = processor_time()
    for _ in range(int(times)):
        work()
    print(round((processor_time() - before) * 1e9 / int(times)), flush=True)
