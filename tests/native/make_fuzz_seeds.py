"""Writes the seeds of lossympi_fuzz.cc: what a round looks like, and what goes wrong in one.

usage: python tests/native/make_fuzz_seeds.py
"""

import struct
from pathlib import Path

FOLDER = Path(__file__).parent / "fuzz_seeds"
PROBE, ECHO, GRANT, READY, DATA, END, NACK, DONE, BYE = range(1, 10)
# Steps of the fuzzer: how far the clock goes on in 0.1 ms and in 0.1 s, and what the owner does.
SHORT, LONG, OWN, ABANDON, TRANSMIT, ACT, STOP, PROBES = (bytes([200 + i]) for i in range(8))
ASK = ABANDON  # what a worker's owner does in its place
SERVER, FLOAT16 = 0x80, 8
DIM_1, DIM_40, DIM_130 = 0, 4, 5  # 1, 5 and 17 datagrams of 8 floats


def datagram(kind, round=1, seq=0, total=0, payload=b"", counter=0, how=0, rank=0):
    """Returns a step that feeds it; `how` is the fuzzer's byte."""
    header = struct.pack("<BBHIQIIQ", 1, kind, rank, 0, round, seq, total, counter)
    return bytes([32 + len(payload), how]) + header + payload


def odd(kind, round=1, seq=0, total=0, payload=b"", counter=2**40, rank=1):
    """Returns a step that feeds a datagram as it is, but for its tag."""
    header = struct.pack("<BBHIQIIQ", 1, kind, rank, 0x12345678, round, seq, total, counter)
    return bytes([32 + len(payload), 0x10 | max(rank - 1, 0)]) + header + payload


def repeated(times):
    """Returns a step that feeds the datagram before it 8 times as often, 32 at the most."""
    return PROBES + bytes([223 + times])


def broadcast(num_acts=30):
    """Returns steps of one to three rows, of which two are done at once and one never is."""
    end = datagram(DONE, 1) + datagram(DONE, 1, how=1) + ACT + b"\0"
    return TRANSMIT + b"\x07" + (ACT + b"\0") * num_acts + end


def vector(seqs, round=1, how=0):
    return b"".join(datagram(DATA, round, seq, payload=bytes(4), how=how) for seq in seqs)


SEEDS = {
    "server_complete": bytes([SERVER | DIM_40])
    + OWN + b"\x07" + vector(range(5)) + datagram(END, 1, 1) + SHORT + b"\x01",
    "server_two_rows": bytes([SERVER | 32 | DIM_40])
    + OWN + b"\x07" + vector(range(5)) + vector(range(5), how=1) + SHORT + b"\xff",
    "server_early": bytes([SERVER | DIM_130])
    + OWN + b"\x0c" + vector(range(0, 17, 2)) + datagram(END, 1, 1) + (SHORT + b"\x80") * 3,
    "server_deadline": bytes([SERVER | DIM_40]) + OWN + b"\x01" + vector([0, 0, 3]) + LONG + b"\x05"
    + vector([1]) + OWN + b"\x01" + vector([1], 2) + LONG + b"\x05",
    "server_repairs": bytes([SERVER | DIM_130 | FLOAT16])
    + OWN + b"\x05" + vector(range(0, 9, 2)) + (datagram(END, 1, 1) + SHORT + b"\x0b") * 2
    + vector(range(1, 9, 2)) + datagram(END, 1, 2) + datagram(READY, 1) + datagram(READY, 2),
    "server_abandons": bytes([SERVER | DIM_40]) + OWN + b"\x01" + vector([0]) + ABANDON + b"\0"
    + vector([1]) + OWN + b"\x81" + vector([1], 3) + LONG + b"\x05",
    "server_broadcast": bytes([SERVER | 64 | DIM_40]) + TRANSMIT + b"\x07" + (ACT + b"\0") * 20
    + datagram(NACK, 1, 0, payload=b"\x15") + datagram(DONE, 1, how=1) + (ACT + b"\0") * 9
    + datagram(DONE, 1) + datagram(BYE, 0, how=2) + SHORT + b"\x20" + (ACT + b"\0") * 4,
    "worker_model": bytes([DIM_40]) + vector(range(5)) + OWN + b"\0" + vector(range(4), 2)
    + datagram(END, 2, 1) + SHORT + b"\x0b" + datagram(END, 2, 2) + vector([4], 2) + OWN + b"\0"
    + datagram(END, 1, 1),
    "worker_later_model": bytes([DIM_40 | FLOAT16]) + vector([0, 1]) + vector(range(5), 3)
    + vector([2]) + datagram(END, 5, 1) + OWN + b"\0" + vector(range(5), 6) + OWN + b"\0",
    "worker_sends": bytes([DIM_40]) + datagram(GRANT, 1, 1000) + TRANSMIT + b"\x01"
    + (ACT + b"\0") * 9 + datagram(NACK, 1, 0, payload=b"\x1f") + (ACT + b"\0") * 9
    + datagram(DONE, 1) + ACT + b"\0" + datagram(BYE, 0),
    "worker_asks": bytes([DIM_40]) + ASK + b"\x06" + (SHORT + b"\x10") * 5 + datagram(GRANT, 2, 9)
    + ASK + b"\x04" + TRANSMIT + b"\x13" + (ACT + b"\0") * 3 + TRANSMIT + b"\x13" + ACT + b"\0"
    + ASK + b"\x09" + (LONG + b"\x01") * 2 + vector(range(5), 3) + OWN + b"\0" + STOP + b"\0",
    "server_malformed": bytes([SERVER | 16 | DIM_40]) + OWN + b"\x01"
    + odd(PROBE) + odd(PROBE, 0, total=1) + odd(PROBE, 0, payload=b"\1") + odd(GRANT, 1, 9)
    + odd(READY, 0) + odd(READY, seq=2) + odd(READY, total=1) + odd(READY, payload=b"\0")
    + odd(END, 0, 1, 5) + odd(END, 1, 1, 4) + odd(END, 1, 1, 5, b"\0")
    + odd(NACK, 0, 0, 5, b"\1") + odd(NACK, 1, 0, 4, b"\1") + odd(NACK, 1, 0, 5, bytes(33))
    + odd(NACK, 1, 0, 5, b"\x20") + odd(NACK, 1, 4, 5, b"\1") + odd(NACK, 1, 8, 5, b"\1")
    + odd(DONE, 0) + odd(DONE, 1, 1) + odd(DONE, 1, 0, 1) + odd(DONE, 1, payload=b"\0")
    + odd(BYE) + odd(BYE, 0, 1) + odd(READY, counter=0) + odd(END, 9, 1, 5)
    + datagram(READY, 1, payload=b"\x99", how=0x20) + odd(0) + odd(READY),
    "worker_malformed": bytes([DIM_40]) + odd(GRANT, 0, 9, rank=0) + odd(GRANT, rank=0)
    + odd(GRANT, 1, 9, 1, rank=0) + odd(GRANT, 1, 9, 0, b"\0", rank=0) + odd(READY, rank=0)
    + odd(GRANT, 3, 9, counter=1, rank=0) + odd(GRANT, 2, 9, counter=2, rank=0)
    + odd(DONE, 3, counter=3, rank=0) + TRANSMIT + b"\x41" + odd(DONE, 4, counter=4, rank=0)
    + TRANSMIT + b"\x41" + TRANSMIT + b"\x21" + odd(DONE, 3, counter=5, rank=0),
    "probes": bytes([SERVER | 32 | DIM_40]) + datagram(ECHO, 0) + PROBES + b"\x05"
    + datagram(ECHO, 0, 9, how=0x40) + datagram(ECHO, 0) + datagram(ECHO, 0, payload=bytes(157))
    + PROBES + b"\x06" + datagram(ECHO, 0, payload=bytes(157))
    + datagram(ECHO, 0, payload=bytes(157), how=1) + PROBES + b"\x07"
    + datagram(PROBE, 0, payload=bytes(157)) + repeated(15) + SHORT + b"\xff"
    + datagram(PROBE, 0, payload=bytes(157)),
    "asks_without_end": bytes([SERVER | DIM_40]) + OWN + b"\x01" + datagram(READY, 1)
    + repeated(32) * 2 + datagram(END, 1, 1) + repeated(9) + SHORT + b"\x02" + datagram(END, 1, 1),
    "server_closed": bytes([SERVER | DIM_40]) + datagram(READY, 1) + OWN + b"\x01"
    + datagram(READY, 1, 1) + vector(range(4)) + datagram(END, 1, 0) + datagram(END, 2, 1)
    + vector([4]) + SHORT + b"\1" + datagram(END, 1, 1) + datagram(READY, 1) + OWN + b"\x04"
    + datagram(END, 1, 1) + datagram(END, 2, 0) + datagram(END, 2, 1) + datagram(READY, 9)
    + ABANDON + b"\0" + datagram(READY, 2) + OWN + b"\x00" + vector(range(5), 3)
    + datagram(END, 3, 0) + datagram(END, 3, 1),
    "server_enough": bytes([SERVER | DIM_130]) + OWN + b"\x02" + vector(range(0, 9, 2))
    + datagram(END, 1, 0) + datagram(END, 1, 1) + vector(range(1, 9, 2)) + datagram(END, 1, 0),
    "server_left_behind": bytes([SERVER | 32 | DIM_40]) + datagram(NACK, 1, payload=b"\1")
    + (broadcast() + LONG + b"\x0a" + (ACT + b"\0") * 3) * 3 + broadcast()
    + datagram(NACK, 2, payload=b"\1", how=2) + datagram(NACK, 1, payload=b"\1", how=2)
    + repeated(1) + datagram(DONE, 9, how=2) + STOP + b"\0" + datagram(DONE, 1)
    + datagram(BYE, 0, how=1) + TRANSMIT + b"\x17" + datagram(DONE, 1) + (ACT + b"\0") * 9,
    "server_one_worker": bytes([SERVER | 64 | DIM_40]) + vector([0]) + OWN + b"\x11"
    + datagram(READY, 2) + vector([0]) + datagram(READY, 1) + vector(range(5)) + datagram(END, 1, 1)
    + SHORT + b"\x01" + TRANSMIT + b"\x0f" + (ACT + b"\0") * 9 + LONG + b"\x0a" + ACT + b"\0"
    + OWN + b"\x11" + datagram(READY, 1) + (ACT + b"\0") * 2 + datagram(NACK, 1, 0, payload=b"\x15")
    + (ACT + b"\0") * 5 + TRANSMIT + b"\x1f" + datagram(DONE, 1) + (ACT + b"\0") * 9
    + datagram(DONE, 2) + (ACT + b"\0") * 2 + datagram(READY, 2) + vector([0, 1], 2)
    + LONG + b"\x05",
    "one_float": bytes([SERVER | DIM_1 | 16]) + OWN + b"\x01" + vector([0]) + datagram(END, 1, 1),
    "hostile": bytes([SERVER | 32 | DIM_40]) + OWN + b"\x03" + datagram(PROBE, 0, 9, 0, bytes(68))
    + datagram(DATA, 1, 2**32 - 1, 2**32 - 1, bytes(32)) + datagram(DATA, 2**64 - 1, 0)
    + datagram(NACK, 1, 2**32 - 8, payload=b"\xff") + datagram(77) + datagram(READY, 2**64 - 1)
    + datagram(END, 1, 1, 5, counter=7, how=0x10) + datagram(READY, 1, how=0x20)
    + datagram(DATA, 1, 5, how=0x40) + datagram(DATA, 1, 4, 0, bytes(32), how=0x41)
    + datagram(DATA, 1, 0, how=3) + b"\x05\0ABCDE" + b"\xc7\0" + bytes(199),
}  # fmt: skip


def main():
    FOLDER.mkdir(exist_ok=True)
    for name, data in SEEDS.items():
        (FOLDER / name).write_bytes(data)


if __name__ == "__main__":
    main()
