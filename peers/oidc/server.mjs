// A real OpenID Connect provider for tests: `node server.mjs REDIRECT_URI`. Prints its issuer, and ends with its input.
// Whoever is named by `login_hint` is signed in without a question. Under /test/ a test changes people and keys.
import { createServer } from 'node:http';
import { generateKeyPairSync } from 'node:crypto';
import Provider from 'oidc-provider';

// Whoever started this reads one line and no more; a write after that would end the process.
console.info = console.warn = console.error;

const people = new Map(); // subject → claims
let provider;
let issuer;

function newKey(kid) {
  const { privateKey } = generateKeyPairSync('rsa', { modulusLength: 2048 });
  return { ...privateKey.export({ format: 'jwk' }), kid, use: 'sig', alg: 'RS256' };
}

function start(kid) {
  provider = new Provider(issuer, {
    clients: [{
      client_id: 'e3',
      client_secret: 'canary of the client: +/%',
      redirect_uris: [process.argv[2]],
      response_types: ['code'],
      grant_types: ['authorization_code'],
    }],
    jwks: { keys: [newKey(kid)] },
    cookies: { keys: ['only for tests'] },
    claims: { openid: ['sub'], email: ['email', 'email_verified'], groups: ['groups'] },
    pkce: { required: () => true },
    features: { devInteractions: { enabled: false } },
    interactions: { url: (_, interaction) => `/interaction/${interaction.uid}` },
    findAccount: (_, id) => people.has(id) && { accountId: id, claims: () => ({ sub: id, ...people.get(id) }) },
  });
  provider.on('server_error', (_, error) => console.error(error));
}

async function interact(request, response) {
  const { params, grantId, prompt } = await provider.interactionDetails(request, response);
  const result = {};
  if (prompt.name === 'login') {
    result.login = { accountId: params.login_hint };
  } else {
    const grant = grantId
      ? await provider.Grant.find(grantId)
      : new provider.Grant({ accountId: params.login_hint, clientId: params.client_id });
    grant.addOIDCScope(params.scope);
    result.consent = { grantId: await grant.save() };
  }
  await provider.interactionFinished(request, response, result, { mergeWithLastSubmission: true });
}

const server = createServer((request, response) => {
  const url = new URL(request.url, issuer);
  if (url.pathname === '/test/person') {
    people.set(url.searchParams.get('sub'), JSON.parse(url.searchParams.get('claims')));
    response.end('{}');
  } else if (url.pathname === '/test/rotate') {
    start(`key-${Date.now()}`);
    response.end('{}');
  } else if (url.pathname.startsWith('/interaction/')) {
    interact(request, response).catch((error) => { response.statusCode = 500; response.end(String(error)); });
  } else {
    provider.callback()(request, response);
  }
});
server.listen(0, '127.0.0.1', () => {
  issuer = `http://127.0.0.1:${server.address().port}`;
  start('key-1');
  console.log(issuer);
});
process.stdin.resume().on('end', () => process.exit(0));
