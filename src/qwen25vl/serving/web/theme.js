// Before anything is shown, so that a dark page does not start white. Not a module for that reason.
try {
  const theme = JSON.parse(localStorage.getItem("qwen25vl-settings") ?? "{}").theme;
  if (theme === "light" || theme === "dark") document.documentElement.dataset.theme = theme;
} catch {
  // no storage, or not ours: the system's choice holds
}
