// Swagger UI over the node's own documents, one for each dialect; nothing is loaded from elsewhere.
const meda = new URLSearchParams(location.search).get("dialect") === "meda";
document.querySelectorAll("nav a")[meda ? 1 : 0].setAttribute("aria-current", "page");
window.ui = SwaggerUIBundle({
  url: meda ? "/api/v1/openapi.json" : "/api/openapi.json",
  dom_id: "#swagger-ui",
  deepLinking: true,
  validatorUrl: null,
  defaultModelsExpandDepth: 0,
  tryItOutEnabled: true,
});
