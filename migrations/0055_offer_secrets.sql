-- Offers with HS256 are signed with a secret that belongs to an API key and is never the key's own secret.
--
-- api_keys.offer_secret: sealed with SEAL_KEY, because a signature is checked with the secret itself and not with its digest. While it
-- is replaced, the one before it counts until previous_offer_until. The trigger of 0034 raises the version with each change.

set local lock_timeout = '2s';

alter table api_keys
  add column offer_secret bytea,
  add column previous_offer_secret bytea,
  add column previous_offer_until timestamptz,
  add constraint api_keys_offer_secrets check ((previous_offer_secret is null) = (previous_offer_until is null)
    and (offer_secret is not null or previous_offer_secret is null)) not valid;

alter table api_keys validate constraint api_keys_offer_secrets;
