// Addresses for the blobs of attachments, one for each file while it may be shown.

const known = new Map();

export async function urlOf(attachment, store) {
  if (!known.has(attachment.file)) {
    const blob = await store.readFile(attachment.file);
    if (!blob) return null;
    if (!known.has(attachment.file)) known.set(attachment.file, URL.createObjectURL(blob));
  }
  return known.get(attachment.file);
}

// frees all but the files that are still shown
export function keepUrls(attachments) {
  const kept = new Set(attachments.map((attachment) => attachment.file));
  for (const [file, url] of known) {
    if (kept.has(file)) continue;
    URL.revokeObjectURL(url);
    known.delete(file);
  }
}
