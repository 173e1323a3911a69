"""What there is to see of a model: figures, pictures, and a page that can be sent."""

from vaeprune.report.writing import Against, Report, write_report

__all__ = ["Against", "Report", "write_report"]
