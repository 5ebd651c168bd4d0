"""`python -m nemo_simplerl COMMAND` is `simplerl COMMAND`."""

from nemo_simplerl.cli.main import main

if __name__ == "__main__":  # worker processes that are spawned import this module again
    raise SystemExit(main())
