// Where images come from: dropped, pasted, chosen, or taken with the camera.

/** Calls `take` with an array of files, whichever way they come. */
export function onFiles(take) {
  for (const [button, input] of [["choose", "file"], ["photo", "camera"]]) {
    const field = document.getElementById(input);
    document.getElementById(button).addEventListener("click", () => field.click());
    field.addEventListener("change", () => {
      take([...field.files]);
      field.value = "";  // so that the same file can be chosen again
    });
  }
  document.addEventListener("paste", (event) => {
    const files = [...event.clipboardData.files];
    if (files.length) take(files);
  });
  onDrop(take);
}

function onDrop(take) {
  const marked = document.body.classList;
  document.addEventListener("dragenter", (event) => {
    if (event.dataTransfer.types.includes("Files")) marked.add("dropping");
  });
  document.addEventListener("dragleave", (event) => {
    if (!event.relatedTarget) marked.remove("dropping");  // else it went to another element
  });
  document.addEventListener("dragover", (event) => event.preventDefault());
  document.addEventListener("drop", (event) => {
    event.preventDefault();  // or the browser leaves the page for the file
    marked.remove("dropping");
    const files = [...event.dataTransfer.files];
    if (files.length) take(files);
  });
}
