"""Export formats by name: one file each, and one line here."""

from curate.exporters import alpaca, messages, sharegpt
from curate.exporters.exporter import Exporter

EXPORTERS: dict[str, Exporter] = {
    exporter.name: exporter for exporter in (sharegpt.EXPORTER, messages.EXPORTER, alpaca.EXPORTER)
}
