// Photographs as they are looked at: cameras store them lying, and write beside them how to hold them.

const HEAD_BYTES = 1 << 16;
const QUALITY = 0.95;

/** The file itself, or a copy that is upright in its pixels: for programs that do not read what is beside them. */
export async function upright(file) {
  if (file.type !== "image/jpeg") return file;
  const head = new DataView(await file.slice(0, HEAD_BYTES).arrayBuffer());
  if (orientation(head) <= 1) return file;
  const bitmap = await createImageBitmap(file).catch(() => null); // which is upright
  if (!bitmap) return file; // the server says what is wrong with it
  const canvas = new OffscreenCanvas(bitmap.width, bitmap.height);
  canvas.getContext("2d").drawImage(bitmap, 0, 0);
  bitmap.close();
  const blob = await canvas.convertToBlob({ type: "image/jpeg", quality: QUALITY });
  return new File([blob], file.name, { type: blob.type });
}

/** The orientation in the first bytes of a JPEG, 1 to 8 as in EXIF; 1: as it is stored. */
export function orientation(head) {
  try {
    let at = 2;
    while (head.getUint16(at) !== 0xffe1 || head.getUint32(at + 4) !== 0x45786966) at += 2 + head.getUint16(at + 2);
    const tiff = at + 10;
    const isLittle = head.getUint16(tiff) === 0x4949;
    const first = tiff + head.getUint32(tiff + 4, isLittle);
    const count = head.getUint16(first, isLittle);
    for (let entry = first + 2; entry < first + 2 + 12 * count; entry += 12) {
      if (head.getUint16(entry, isLittle) === 0x0112) return head.getUint16(entry + 8, isLittle);
    }
  } catch {
    // It ends before, as those do that have no such thing.
  }
  return 1;
}
