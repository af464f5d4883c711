"""Both ends of very many connections: `crowd.py serve PORT ADDRESS`, and `crowd.py open PORT ADDRESS...`.

`serve` accepts and keeps what it accepts. `open` is told by its input, line by line, how many connections are to be open in all; it opens what is missing, 16 at
a time and to each address in turn, sends a byte on each, and answers with a line of JSON: `open`, how many are; `moments`, the seconds at the beginning and
after each thousand; `refused`, the first failure, its name and the milliseconds that it took; then it opens no more. `close N` closes so many.
Both raise their own limit of descriptors to the hard one.
"""

import errno, json, resource, select, socket, struct, sys, time

AT_ONCE = 16
# Nothing is said about a connection for so long: it hangs.
HANGS = 5


def serve(port, address):
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind((address, port))
    listener.listen(4096)
    kept = []
    while True:
        kept.append(listener.accept()[0])


class Crowd:
    def __init__(self, port, addresses):
        self.port, self.addresses = port, addresses
        self.kept, self.refused, self.begun = [], None, 0
        self.poll = select.epoll()

    def begin(self):
        one = socket.socket()
        one.setblocking(False)
        address = self.addresses[self.begun % len(self.addresses)]
        self.begun += 1
        started = time.monotonic()
        failed = one.connect_ex((address, self.port))
        if failed not in (0, errno.EINPROGRESS):
            self.fail(errno.errorcode[failed], started)
            return None
        self.poll.register(one, select.EPOLLOUT)
        return one, started

    def fail(self, what, started):
        self.refused = self.refused or {"error": what, "ms": (time.monotonic() - started) * 1e3}

    def fill(self, wanted):
        first, moments, asked = len(self.kept), [time.monotonic()], {}
        while True:
            while not self.refused and len(asked) < AT_ONCE and len(self.kept) + len(asked) < wanted:
                if begun := self.begin():
                    asked[begun[0].fileno()] = begun
            if not asked:
                break
            events = self.poll.poll(HANGS)
            if not events:
                self.fail("hangs", next(iter(asked.values()))[1])
                break
            for number, _ in events:
                one, started = asked.pop(number)
                self.poll.unregister(one)
                if failed := one.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                    self.fail(errno.errorcode[failed], started)
                    continue
                self.kept.append(one)
                if (len(self.kept) - first) % 1000 == 0:
                    moments.append(time.monotonic())
        for one in self.kept[first:]:
            one.send(b"x")
        return {"open": len(self.kept), "moments": moments, "refused": self.refused}

    def close(self, count):
        for one in self.kept[-count:]:
            # By RST: the server would not end its half.
            one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            one.close()
        del self.kept[-count:]
        self.refused = None
        return {"open": len(self.kept)}


def main():
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    what, port, *addresses = sys.argv[1:]
    if what == "serve":
        serve(int(port), *addresses)
    crowd = Crowd(int(port), addresses)
    for line in sys.stdin:
        *close, count = line.split()
        print(json.dumps(crowd.close(int(count)) if close else crowd.fill(int(count))), flush=True)


main()
