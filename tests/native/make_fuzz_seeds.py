"""Writes the seeds of lossympi_fuzz.cc: what a round looks like, and what goes wrong in one.

usage: python tests/native/make_fuzz_seeds.py
"""

import struct
from pathlib import Path

FOLDER = Path(__file__).parent / "fuzz_seeds"
PROBE, ECHO, GRANT, READY, DATA, END, NACK, DONE, BYE = range(1, 10)
# Steps of the fuzzer: how far the clock goes on in 0.1 ms and in 0.1 s, and what the owner does.
SHORT, LONG, OWN, ABANDON, TRANSMIT, ACT, STOP = (bytes([200 + i]) for i in range(7))
ASK = ABANDON  # what a worker's owner does in its place
SERVER, FLOAT16 = 0x80, 8
DIM_1, DIM_40, DIM_130 = 0, 4, 5  # 1, 5 and 17 datagrams of 8 floats


def datagram(kind, round=1, seq=0, total=0, payload=b"", counter=0, how=0, rank=0):
    """Returns a step that feeds it; `how` is the fuzzer's byte."""
    header = struct.pack("<BBHIQIIQ", 1, kind, rank, 0, round, seq, total, counter)
    return bytes([32 + len(payload), how]) + header + payload


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
