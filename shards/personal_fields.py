"""Which fields of EXIF, XMP, IPTC and PNG texts are personal data, and of what kind."""

from __future__ import annotations

NAME, PLACE, TIME, SERIAL, TEXT = "name", "place", "time", "serial", "free text"
"""The kinds. Who (patients' and doctors' names stand in author fields), where and when (a day and a ward together
name a visit), which apparatus (a serial number names the laboratory and joins its images), and texts in which
anything may stand. What only says how the picture was taken (model, exposure, software, size) is not personal."""

TIFF_FIELDS = {
    0x010D: ("DocumentName", TEXT),
    0x010E: ("ImageDescription", TEXT),
    0x0132: ("DateTime", TIME),
    0x013B: ("Artist", NAME),
    0x013C: ("HostComputer", NAME),
    0x8298: ("Copyright", NAME),
    0x9C9B: ("XPTitle", TEXT),
    0x9C9C: ("XPComment", TEXT),
    0x9C9D: ("XPAuthor", NAME),
    0x9C9E: ("XPKeywords", TEXT),
    0x9C9F: ("XPSubject", TEXT),
    0xC62F: ("CameraSerialNumber", SERIAL),
}
"""Tags of the first directory of EXIF (CIPA DC-008) and TIFF."""

EXIF_FIELDS = {
    0x9003: ("DateTimeOriginal", TIME),
    0x9004: ("DateTimeDigitized", TIME),
    0x927C: ("MakerNote", SERIAL),
    0x9286: ("UserComment", TEXT),
    0xA420: ("ImageUniqueID", SERIAL),
    0xA430: ("CameraOwnerName", NAME),
    0xA431: ("BodySerialNumber", SERIAL),
    0xA435: ("LensSerialNumber", SERIAL),
    0xA436: ("ImageTitle", TEXT),
    0xA437: ("Photographer", NAME),
    0xA438: ("ImageEditor", NAME),
}
"""Tags of the Exif directory. Makers put serial numbers and owners into their notes."""

GPS_FIELDS = {
    0x02: ("GPSLatitude", PLACE),
    0x04: ("GPSLongitude", PLACE),
    0x07: ("GPSTimeStamp", TIME),
    0x14: ("GPSDestLatitude", PLACE),
    0x16: ("GPSDestLongitude", PLACE),
    0x1C: ("GPSAreaInformation", PLACE),
    0x1D: ("GPSDateStamp", TIME),
}

XMP_FIELDS = {
    NAME: "creator rights Artist Copyright author Author AuthorsPosition CaptionWriter Credit Owner OwnerName "
    "CameraOwnerName Photographer UsageTerms PersonInImage CreatorContactInfo publisher contributor",
    PLACE: "GPSLatitude GPSLongitude City State Country CountryCode Location LocationCreated LocationShown",
    TIME: "CreateDate ModifyDate MetadataDate DateCreated DateTimeOriginal DateTimeDigitized DateTime "
    "date GPSTimeStamp",
    SERIAL: "SerialNumber BodySerialNumber LensSerialNumber CameraSerialNumber DocumentID InstanceID "
    "OriginalDocumentID ImageUniqueID",
    TEXT: "description title subject Headline Instructions UserComment ImageDescription Keywords Title Caption",
}
"""Local names of XMP properties (XMP specification, parts 1 and 2; IPTC core; Exif for XMP)."""

XMP_KINDS = {name: kind for kind, names in XMP_FIELDS.items() for name in names.split()}

IPTC_FIELDS = {
    5: ("Title", TEXT),
    25: ("Keywords", TEXT),
    55: ("DateCreated", TIME),
    60: ("TimeCreated", TIME),
    80: ("By-line", NAME),
    85: ("By-lineTitle", NAME),
    90: ("City", PLACE),
    92: ("Sub-location", PLACE),
    95: ("Province", PLACE),
    101: ("Country", PLACE),
    105: ("Headline", TEXT),
    110: ("Credit", NAME),
    116: ("Copyright", NAME),
    118: ("Contact", NAME),
    120: ("Caption", TEXT),
    122: ("CaptionWriter", NAME),
}
"""Data sets of record 2 (IPTC-NAA information interchange model, version 4)."""

PNG_TEXTS = {"Author": NAME, "Copyright": NAME, "Creation Time": TIME, "Software": "", "Creator": NAME, "Artist": NAME}
"""Kinds of the keywords of PNG texts; "" is not personal. Any other keyword is free text."""

ENCODERS = (b"CREATOR: gd-jpeg", b"Lavc", b"LEAD Technologies", b"File written by Adobe", b"Optimized by JPEGmini",
            b"Created with GIMP", b"Intel(R) JPEG", b"AppleMark", b"Compressed by jpeg-recompress")  # fmt: skip
"""Comments that encoders leave in JPEG files."""

KINDS = {
    **{f"EXIF {name}": kind for fields in (TIFF_FIELDS, EXIF_FIELDS, GPS_FIELDS) for name, kind in fields.values()},
    **{f"XMP {name}": kind for name, kind in XMP_KINDS.items()},
    **{f"IPTC {name}": kind for name, kind in IPTC_FIELDS.values()},
}
"""Kinds of the fields that have a place of their own, by the names that `shards.metadata.personal` gives them."""


def kind_of(field: str) -> str:
    """Return the kind of a field by its name ("EXIF Artist", "PNG Author", "JPEG comment"); "" if not personal."""
    if field in KINDS:
        return KINDS[field]
    keyword = field.removeprefix("PNG ")
    return TIME if keyword.startswith(("date:", "tIME")) else PNG_TEXTS.get(keyword, TEXT)
