"""`python -m llmopt` is `llmopt`."""

from llmopt.cli.main import run

if __name__ == "__main__":
    run()
