"""The process that sends one event by apprise, within a bound of memory; `events.py` starts it, and bounds its time.

apprise reads whatever a service answers. It ends with code 1 if the service did not take the event.
"""

import json
import resource
import sys

import apprise


def main() -> None:
    """Send what standard input holds as JSON: address, title and text. The argument is the bound, in bytes."""
    most, hard = int(sys.argv[1]), resource.getrlimit(resource.RLIMIT_DATA)[1]
    resource.setrlimit(resource.RLIMIT_DATA, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))
    address, title, text = json.load(sys.stdin)
    service = apprise.Apprise(asset=apprise.AppriseAsset(app_id="ptpipeline", http_redirects=False))
    taken = service.add(address) and service.notify(title=title, body=text, body_format=apprise.NotifyFormat.TEXT)
    sys.exit(0 if taken else 1)


if __name__ == "__main__":
    main()
