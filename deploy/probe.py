"""The health check of a container: `probe.py [PATH]` asks this machine's server for PATH and ends with 1 unless it is
200. The port is CORTEX_PORT, 8080 by default."""

import os
import sys
import urllib.error
import urllib.request

TIMEOUT = 3.0


def main(path: str) -> int:
    url = f"http://127.0.0.1:{os.environ.get('CORTEX_PORT') or 8080}{path}"
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with direct.open(url, timeout=TIMEOUT):
            return 0
    except (urllib.error.URLError, OSError) as error:
        sys.stderr.write(f"{url}: {error}\n")
        return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1] if len(sys.argv) > 1 else "/ready"))
