"""Write small spreadsheets as zip files of XML: XLSX (ECMA-376) and ODS (ISO/IEC 26300); and one in XLS."""

import base64
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from xml.sax.saxutils import escape

Row = Sequence[object]
DAY = "day:"
"""The beginning of a text that is written as a date, a number of days since 1899-12-30 follows."""
XLS = zlib.decompress(
    base64.b85decode(
        b"c-rk)O=uHA6#iy+^H<U|)l_JO5(-wWtypvM(nh7)Q)<<NKM0zbprs)VAqVTlYRyp)1wrvrs0S}qFa9h3Ts#OBJqUu3=+Tp);Gxa>=ItaV"
        b"H9`VfsO-1wn>TM}zIi)uW_EVp%(v!e?sOEe1cT5~G(B)u*aY34QpOJ|H%+OQQa9bEjTHrtn*!-{;8F8ymyDr|cL5r18_!7spXfe<G)5*;"
        b"iQqC~C;Jc;(uV<(0@umnLpyu5isf;Zt6ARSnvYp-XUhea15`IJ4r4w%(z8v?;)7Zjm-!%h?{S+CZ0ScEUddT}=Ay9bI<O-%7EP|Of=<JW"
        b"Sx`WS6RAW-=38(BO~4^SUnJ5uG?Yhxf<24xW)S#RTGh{jwtac+0%ZSDZFl{_?xr9vwO`f@U<&3jUL-l%phJc=7xph;54@yO+(EW<G<(tk"
        b"B%`rJ(#6@aL@KKT@#rMkw`@+QPS7+uMS8!|rG2Z^DGkX~QdwJuziP{9=B4B%8Al82t-PT8<nzMKuWuu<(eP2WOz~^NdYP<~zQe>>*@7DT"
        b"xWvIymh^CoO)Sqb>sr=3SO%yjrQM@#O4&Wlb<T5XH}w-@ybG_d&^M5t`?B|bXYO-&Bk6O)h0}q#_u(0I(b&bQy}YK;D|*GXs}c{wrBtYm"
        b"=OfGZ-!>t)=2yO(>W$fgMIL_8ct}_|IXa@8)6`g5Ih}I4;u1Bu1aldxzF;mnVo%67!CaSw+#v71)QCs2Xf;?gW^pPOD_$<eqE)awEVJk}"
        b"SafD_D;B-V7oAzIFw4_2i&2BcU>1*JF{*qqDp+1H%b-TjCf%oP{ui2H!-fqTHf-3iVWTbxK7c|U@2tbOJQljtf1O3Ti}r7l{}%f&L06VO"
        b"Dt948X$F%G&7U=Jh!U5mvrXxLp~L~|J%e$?*pKms=P!M(h|1@wyP^N@EulvHFE--mKkol05jO6y"
    )
)
"""Sheet S of xlwt: path, label, patient and day; 0.png, x, 100, 2024-01-02 and three more rows."""


def write_xlsx(
    path: Path,
    sheets: Mapping[str, Sequence[Row]],
    *,
    hidden: Sequence[str] = (),
    merged: str = "",
    extra: Mapping[str, bytes] | None = None,
) -> Path:
    """Write sheets of rows. `None` is no cell, `=#N/A` an error of a formula; the range `merged` is in each sheet."""
    main, office = "http://schemas.openxmlformats.org/", "officeDocument/2006/relationships"
    names = list(enumerate(sheets, 1))
    states = {name: ' state="hidden"' if name in hidden else "" for name in sheets}
    listed = "".join(f'<sheet name="{name}" sheetId="{k}" r:id="r{k}"{states[name]}/>' for k, name in names)
    related = "".join(
        f'<Relationship Id="r{k}" Type="{main}{office}/worksheet" Target="worksheets/sheet{k}.xml"/>' for k, _ in names
    )
    relationships = f'<Relationships xmlns="{main}package/2006/relationships">'
    files = {
        "[Content_Types].xml": f'<Types xmlns="{main}package/2006/content-types"/>',
        "_rels/.rels": f'{relationships}<Relationship Id="r" Type="{main}{office}/officeDocument" '
        'Target="xl/workbook.xml"/></Relationships>',
        "xl/workbook.xml": f'<workbook xmlns="{main}spreadsheetml/2006/main" xmlns:r="{main}{office}"><sheets>{listed}'
        "</sheets></workbook>",
        "xl/_rels/workbook.xml.rels": f'{relationships}{related}<Relationship Id="s" Type="{main}{office}/styles" '
        'Target="styles.xml"/></Relationships>',
        "xl/styles.xml": f'<styleSheet xmlns="{main}spreadsheetml/2006/main"><cellXfs><xf numFmtId="0"/>'
        '<xf numFmtId="14"/></cellXfs></styleSheet>',
    }
    spans = f'<mergeCells><mergeCell ref="{merged}"/></mergeCells>' if merged else ""
    for k, name in names:
        rows = "".join(
            f'<row r="{line}">{"".join(_write_cell(value, line, at) for at, value in enumerate(row))}</row>'
            for line, row in enumerate(sheets[name], 1)
        )
        files[f"xl/worksheets/sheet{k}.xml"] = (
            f'<worksheet xmlns="{main}spreadsheetml/2006/main"><sheetData>{rows}</sheetData>{spans}</worksheet>'
        )
    return _pack(path, files, extra or {})


def _write_cell(value: object, line: int, at: int) -> str:
    place = f'r="{chr(65 + at)}{line}"'
    match value:
        case None:
            return ""
        case bool():
            return f'<c {place} t="b"><v>{int(value)}</v></c>'
        case int() | float():
            return f"<c {place}><v>{value!r}</v></c>"
        case str() if value.startswith(DAY):
            return f'<c {place} s="1"><v>{value.removeprefix(DAY)}</v></c>'
        case str() if value.startswith("="):
            return f'<c {place} t="e"><f>1/0</f><v>{value[1:]}</v></c>'
    return f'<c {place} t="inlineStr"><is><t>{escape(str(value))}</t></is></c>'


def write_ods(path: Path, rows: Sequence[Row], *, rows_spanned: int = 1) -> Path:
    """Write a sheet of texts and numbers, followed by the empty rows up to the last one that LibreOffice writes."""
    name = "urn:oasis:names:tc:opendocument:xmlns:"
    span = f' table:number-rows-spanned="{rows_spanned}"' if rows_spanned > 1 else ""
    cells = [
        "".join(
            f'<table:table-cell office:value-type="float" office:value="{value}"/>'
            if isinstance(value, int | float)
            else f'<table:table-cell office:value-type="string"{span}><text:p>{value}</text:p></table:table-cell>'
            for value in row
        )
        for row in rows
    ]
    empty = '<table:table-cell table:number-columns-repeated="999"/>'
    body = "".join(f"<table:table-row>{row}</table:table-row>" for row in cells)
    body += f'<table:table-row table:number-rows-repeated="1048000">{empty}</table:table-row>'
    files = {
        "mimetype": "application/vnd.oasis.opendocument.spreadsheet",
        "content.xml": f'<office:document-content xmlns:office="{name}office:1.0" xmlns:table="{name}table:1.0" '
        f'xmlns:text="{name}text:1.0"><office:body><office:spreadsheet><table:table table:name="S">{body}'
        "</table:table></office:spreadsheet></office:body></office:document-content>",
        "META-INF/manifest.xml": f'<manifest:manifest xmlns:manifest="{name}manifest:1.0"/>',
    }
    return _pack(path, files, {})


def _pack(path: Path, files: Mapping[str, str | bytes], extra: Mapping[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed:
        for name, content in (dict(files) | dict(extra)).items():
            packed.writestr(name, content)
    return path
