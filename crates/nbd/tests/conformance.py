"""Asks a server everything that libnbd can ask. Prints a line per question: `ok`, or `FAIL` with what came back.

usage: conformance.py URI [read-only]
"""

import errno
import sys

import nbd

uri, read_only = sys.argv[1], len(sys.argv) > 2
EINVAL, EPERM, ENOSPC, ENOENT = errno.EINVAL, errno.EPERM, errno.ENOSPC, errno.ENOENT
grow = EPERM if read_only else ENOSPC
trim = EPERM if read_only else EINVAL


def connect(structured=True):
    client = nbd.NBD()
    client.set_strict_mode(0)  # so that the server is asked what libnbd would refuse
    client.add_meta_context("base:allocation")
    client.set_request_structured_replies(structured)
    client.connect_uri(uri)
    return client


def expect(what, wanted, question):
    got = 0
    try:
        question()
    except nbd.Error as error:
        got = error.errnum
    wanted = wanted if isinstance(wanted, tuple) else (wanted,)
    print("ok  " if got in wanted else "FAIL", what, errno.errorcode.get(got, got))


def check(what, holds):
    print("ok  " if holds else "FAIL", what)


for structured in (True, False):
    client = connect(structured)
    size = client.get_size()
    last = size - 512
    for what, wanted, question in [
        ("read", 0, lambda: client.pread(512, 0)),
        ("last sector", 0, lambda: client.pread(512, last)),
        ("past the end", EINVAL, lambda: client.pread(1024, last)),
        ("far past the end", EINVAL, lambda: client.pread(512, 1 << 62)),
        ("unaligned", EINVAL, lambda: client.pread(100, 1)),
        ("read nothing", 0, lambda: client.pread(0, 0)),
        ("write past the end", grow, lambda: client.pwrite(bytes(1024), last)),
        ("zero past the end", grow, lambda: client.zero(1024, last)),
        ("trim past the end", trim, lambda: client.trim(1024, last)),
        ("cache", 0, lambda: client.cache(512, 0)),
        ("flush", 0, lambda: client.flush()),
        ("FUA on a read", 0, lambda: client.pread(512, 0, flags=nbd.CMD_FLAG_FUA)),
        ("NO_HOLE on a read", EINVAL, lambda: client.pread(512, 0, flags=nbd.CMD_FLAG_NO_HOLE)),
        ("unknown flag", EINVAL, lambda: client.flush(flags=0x8000)),
        (
            "status",
            0 if structured else (EINVAL, errno.ENOTSUP),
            lambda: client.block_status(size, 0, lambda *_: 0),
        ),
    ]:
        expect(what, wanted, question)
    if structured:
        expect("DF", 0, lambda: client.pread(65536, 0, flags=nbd.CMD_FLAG_DF))
        expect("REQ_ONE", 0, lambda: client.block_status(size, 0, lambda *_: 0, flags=nbd.CMD_FLAG_REQ_ONE))
        expect("status past the end", EINVAL, lambda: client.block_status(4096, last, lambda *_: 0))
    if not read_only:
        expect("FUA write", 0, lambda: client.pwrite(b"a" * 4096, 8192, flags=nbd.CMD_FLAG_FUA))
        expect("NO_HOLE", 0, lambda: client.zero(4096, 8192, flags=nbd.CMD_FLAG_NO_HOLE))
        expect("FAST_ZERO", 0, lambda: client.zero(4096, 8192, flags=nbd.CMD_FLAG_FAST_ZERO))
        check("zeroed", client.pread(4096, 8192) == bytes(4096))
    expect("alive", 0, lambda: client.pread(512, 0))
    client.shutdown()

if not read_only:
    first, second = connect(), connect()
    first.pwrite(b"\x77" * 4096, 16384)
    second.flush()
    check("multi-conn", connect().pread(4096, 16384) == b"\x77" * 4096)

client = nbd.NBD()
client.set_opt_mode(True)
client.connect_uri(uri)
name = client.get_export_name()
client.set_export_name("no such export")
expect("unknown export", ENOENT, client.opt_info)
client.set_export_name(name)
expect("info", 0, client.opt_info)
expect("abort", 0, client.opt_abort)
