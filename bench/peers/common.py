"""What the peers' benchmarks share: our program's figures, timing, and the report."""
import argparse
import json
import os
import statistics
import subprocess
import sys
import time

ROOT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..")


def parser(description):
    options = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--mla", default=os.path.join(ROOT, "build", "mla"), help="our program (build/mla)")
    options.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="threads of both sides")
    options.add_argument("--seconds", type=float, default=0.3, help="time for each figure and round (0.3)")
    options.add_argument("--rounds", type=int, default=3, help="rounds, both sides taking turns (3)")
    options.add_argument("--sections", default="decode,prefill,gqa,model", help="comma-separated; all by default")
    options.add_argument("--json", action="store_true", help="print JSON")
    return options


def median_seconds(call, seconds):
    """Median time of call() over `seconds`, at least three calls."""
    call()
    times = []
    end = time.perf_counter() + seconds
    while len(times) < 3 or time.perf_counter() < end:
        begin = time.perf_counter()
        call()
        times.append(time.perf_counter() - begin)
    return statistics.median(times)


class Comparison:
    """Runs peers and `mla bench` in turns and keeps our entries, each with a peer's figures as "peer"."""

    def __init__(self, options):
        self.options = options
        self.entries = []

    def wants(self, section):
        return section in self.options.sections.split(",")

    def ours(self, *arguments):
        """The entries of one run of our program."""
        command = [self.options.mla, "bench", *map(str, arguments), "--threads", str(self.options.threads),
                   "--seconds", str(self.options.seconds), "--json"]
        result = subprocess.run(command, stdout=subprocess.PIPE, text=True)
        if result.returncode:
            sys.exit(f"{' '.join(command)}: status {result.returncode}")
        return json.loads(result.stdout)

    def run(self, arguments, peers, pick=None):
        """`peers`: name -> call() that does once what each picked entry (else the first) of `mla bench ARGUMENTS` does."""
        our_rounds, peer_rounds = [], {name: [] for name in peers}
        for _ in range(self.options.rounds):
            for name, call in peers.items():
                peer_rounds[name].append(median_seconds(call, self.options.seconds))
            entries = self.ours(*arguments)
            our_rounds.append(list(filter(pick, entries)) if pick else entries[:1])
        for entries in zip(*our_rounds):
            entry = sorted(entries, key=lambda e: e["seconds"])[len(entries) // 2]
            for name, times in peer_rounds.items():
                self.add(entry, name, statistics.median(times))

    def add(self, entry, name, seconds):
        factor = entry["seconds"] / seconds  # the same work, so every rate scales alike
        peer = {"name": name, "seconds": seconds, "gflops": entry["gflops"] * factor,
                "gbytes_per_s": entry["gbytes_per_s"] * factor, "ceiling": entry["ceiling"],
                "share": entry["share"] * factor}
        if "tokens_per_s" in entry:
            peer["tokens_per_s"] = entry["tokens_per_s"] * factor
        self.entries.append({**entry, "peer": peer})
        if not self.options.json:
            print(f"{entry['name']:<48}{1e3 * entry['seconds']:>10.3f} ms {100 * entry['share']:>4.0f}%   "
                  f"{name:<26}{1e3 * seconds:>10.3f} ms {100 * peer['share']:>4.0f}%   {1 / factor:>6.2f}x", flush=True)

    def finish(self):
        if self.options.json:
            print(json.dumps(self.entries, indent=2))
