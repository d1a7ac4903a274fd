"""What ``pi05-rl plan`` prints of a configuration, for docs/performance.md.

python benchmarks/plan.py [CONFIG] [--write-docs]
"""

import argparse
import io

from docs_section import write_section
from rich.console import Console

from lerobot_policy_pi05_rl.config.file import load_config
from lerobot_policy_pi05_rl.plan.compute import make_plan
from lerobot_policy_pi05_rl.plan.report import print_plan
from lerobot_policy_pi05_rl.plan.setup import make_setup


def main() -> None:
    """Print the plan."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", nargs="?", default="configs/so101.json")
    parser.add_argument("--write-docs", action="store_true", help="put it into docs/performance.md")
    args = parser.parse_args()
    page = io.StringIO()
    print_plan(make_plan(make_setup(load_config(args.config))), Console(file=page, width=100))
    text = "\n".join(line.rstrip() for line in page.getvalue().strip().splitlines())
    print(text)
    if args.write_docs:
        write_section("plan", f"pi05-rl plan {args.config}", f"```text\n{text}\n```")


if __name__ == "__main__":
    main()
