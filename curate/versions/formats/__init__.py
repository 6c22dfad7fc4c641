"""Export formats by name: a new format is a file and a line here."""

from curate.versions.formats import alpaca, messages, sharegpt
from curate.versions.formats.format import ExportFormat

FORMATS: dict[str, ExportFormat] = {
    export_format.name: export_format for export_format in (sharegpt.FORMAT, messages.FORMAT, alpaca.FORMAT)
}
