"""``python -m nd.doctor``."""

from nd.doctor.report import main

if __name__ == "__main__":
    main()
