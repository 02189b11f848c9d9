// A picture from the camera. Browsers give the camera to pages on https and localhost only;
// elsewhere a phone's own camera program takes the picture.

import { byId, openDialog } from "./dom.js";
import { frameOf } from "./media.js";

// a blob, or null if the person cancels
export async function takePicture() {
  const video = byId("camera-video");
  const wanted = { video: { facingMode: "environment", width: { ideal: 1920 } }, audio: false };
  const stream = await navigator.mediaDevices.getUserMedia(wanted);
  try {
    video.srcObject = stream;
    await video.play();
    return (await openDialog("camera-dialog")) === "yes" ? await frameOf(video) : null;
  } finally {
    video.srcObject = null;
    for (const track of stream.getTracks()) track.stop();
  }
}

export const hasCamera = () => Boolean(navigator.mediaDevices?.getUserMedia);
