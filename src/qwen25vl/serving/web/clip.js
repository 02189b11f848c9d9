// A clip, played; the frame at which it stands can become a picture of the next question.

import { byId, openDialog } from "./dom.js";
import { frameOf } from "./media.js";

// the frame as a blob, or null
export async function playClip(attachment, url) {
  const isGif = attachment.type === "image/gif"; // plays as a picture, without controls
  const video = byId("clip-video");
  const image = byId("clip-image");
  video.hidden = isGif;
  image.hidden = !isGif;
  byId("clip-frame").hidden = isGif;
  byId("clip-title").textContent = attachment.name;
  (isGif ? image : video).src = url;
  const answer = await openDialog("clip-dialog");
  const frame = answer === "yes" && video.videoWidth > 0 ? await frameOf(video) : null;
  for (const shown of [video, image]) shown.removeAttribute("src");
  video.load();
  return frame;
}
