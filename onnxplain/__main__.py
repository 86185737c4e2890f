"""`python -m onnxplain` is `onnxplain`."""

from onnxplain.cli import main

if __name__ == "__main__":
    main()
