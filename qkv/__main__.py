"""The `qkv` script, and `python -m qkv` where that is not on the path: Ctrl-C is exit code 130 from the start."""


def main() -> None:
    try:
        from qkv.cli import main as run

        run()
    except KeyboardInterrupt:
        raise SystemExit(130) from None


if __name__ == "__main__":
    main()
